"""The results of a GPU as rows of a log."""

from collections.abc import Iterator
from typing import Any


def markdown_rows(results: dict[str, Any]) -> Iterator[str]:
    """A table of all parts, then the largest kernels of the profile."""
    versions = f"torch {results['torch']}" + (f", CUDA {results['cuda']}" if results["cuda"] else "")
    yield f"{results['device']}, {versions}, commit {str(results['commit'])[:10]}"
    yield "| part | figures |"
    yield "| --- | --- |"
    for name, part in results["parts"].items():
        yield f"| {name} | {figures(part)} |"
    kernels = results["parts"].get("profile", {}).get("result", {}).get("kernels", [])
    if kernels:
        yield ""
        yield "| kernel | ms | share | calls |"
        yield "| --- | --- | --- | --- |"
        for kernel in kernels:
            yield f"| `{kernel['name']}` | {kernel['ms']} | {kernel['share']:.0%} | {kernel['calls']} |"


def figures(part: dict[str, Any]) -> str:
    """The numbers of a part that a log keeps, in words."""
    if "error" in part:
        return f"failed: {part['error']}" + (f" ({part['tests']})" if "tests" in part else "")
    if "tests" in part:
        return str(part["tests"])
    found = part["result"]
    if "batch" in found:
        speeds = ", ".join(
            f"{rows} rows {one['exact']['tokens_per_s']} tokens/s" for rows, one in found["batch"].items()
        )
        return f"depth {found['depth']}: {speeds}"
    if "decoding" in found:
        steps = ", ".join(f"{teacher} teacher {found[teacher]['total']} ms" for teacher in ("direct", "cached"))
        return f"a step: {steps}"
    speed = (
        f"{found['real_tokens_per_s']} tokens/s" if "real_tokens_per_s" in found else f"{found['steps_per_s']} steps/s"
    )
    memory = found["peak_memory_bytes"] / 2**30
    return f"{1000 * found['seconds_per_step']:.0f} ms a step, {speed}, {found['ratio']:.0%} of the matmul rate, {memory:.1f} GiB"
