"""A stand-in for the Hub with several repositories, each with its own files and faults."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.dataset.instruct_samples import FakeHub, HubHandler


class RepositoriesHandler(HubHandler):
    """Answers for the repository in the path; one that is not there is refused as the Hub does."""

    hubs: dict[str, FakeHub]

    def do_GET(self) -> None:
        parts = self.path.removeprefix("/api").split("?")[0].split("/")
        hub = self.hubs.get("/".join(parts[2:4]))
        if hub is None:
            self.send_error(401)
        else:
            self.hub = hub
            super().do_GET()


def json_lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet_file(records: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), buffer)
    return buffer.getvalue()


def baseline_files(count: int = 30) -> dict[str, dict[str, bytes]]:
    """What the repositories of the first corpus hold, in small."""
    metamath = [{"query": f"{i} + {i}?", "response": f"é {2 * i}", "type": "x"} for i in range(count)]
    functions = [{"whole_func_string": f"def f{i}():\n    return {i}\n", "language": "python"} for i in range(count)]
    solutions = ["print(1)", "print(2)"]
    problems = [{"question": f"Print {i}", "solutions": json.dumps(solutions), "starter_code": ""} for i in range(4)]
    problems.append({"question": "Unsolved", "solutions": "", "starter_code": ""})
    tasks = [{"text": f"Task {i}", "code": "pass", "test_list": ["assert 1", "assert 2"]} for i in range(3)]
    return {
        "meta-math/MetaMathQA": {"README.md": b"card", "MetaMathQA-395K.json": json.dumps(metamath, indent=1).encode()},
        "code-search-net/code_search_net": {
            "python/train-00000-of-00002.parquet": parquet_file(functions[: count // 2]),
            "python/train-00001-of-00002.parquet": parquet_file(functions[count // 2 :]),
            "python/test-00000-of-00001.parquet": parquet_file([{"whole_func_string": "test"}]),
            "go/train-00000-of-00001.parquet": parquet_file([{"whole_func_string": "go"}]),
        },
        "codeparrot/apps": {"train.jsonl": json_lines(problems), "test.jsonl": json_lines([{"question": "test"}])},
        "google-research-datasets/mbpp": {"full/train-00000-of-00001.parquet": parquet_file(tasks)},
    }
