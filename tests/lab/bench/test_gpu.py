import gzip
import json
import time

import pytest

from lab.bench import gpu
from lab.bench.gpu import bench_gpu
from lab.bench.rows import markdown_rows

STEP = {
    "seconds_per_step": 0.25, "steps_per_s": 4.0, "ratio": 0.4, "peak_memory_bytes": 2**31, "kernels": [],
}  # fmt: skip
SAYS = ["-c", f"print({json.dumps(STEP)!r})"]


def run(folder, seconds=60.0, only=()):
    return bench_gpu(str(folder), seconds, "cpu", True, only)


def given_parts(monkeypatch, **found):
    monkeypatch.setattr(gpu, "parts", lambda *_: found)
    monkeypatch.setattr(gpu, "SHORTEST", 0.0)


def test_profile_names_kernels_and_leaves_a_trace(tmp_path):
    found = run(tmp_path, only=["profile"])
    kernels = found["parts"]["profile"]["result"]["kernels"]
    assert any(kernel["name"] == "aten::mm" and kernel["calls"] > 0 for kernel in kernels)
    assert kernels == sorted(kernels, key=lambda kernel: -kernel["ms"])
    with gzip.open(tmp_path / gpu.TRACE) as file:
        assert json.load(file)["traceEvents"]
    assert any("aten::mm" in row for row in markdown_rows(found))


def test_a_call_goes_on_where_the_last_one_ran_out_of_time(tmp_path, monkeypatch):
    given_parts(monkeypatch, one=SAYS, two=["-c", "import time; time.sleep(20)"])
    started = time.monotonic()
    assert set(run(tmp_path, 2.0)["parts"]) == {"one"}
    assert time.monotonic() - started < 10
    given_parts(monkeypatch, one=["-c", "raise SystemExit(3)"], two=SAYS)
    found = run(tmp_path)
    assert found["parts"]["one"]["result"] == found["parts"]["two"]["result"] == STEP
    assert "| one | 250 ms a step, 4.0 steps/s, 40% of the matmul rate, 2.0 GiB |" in markdown_rows(found)


def test_a_part_that_failed_is_said_and_tried_again(tmp_path, monkeypatch):
    given_parts(monkeypatch, one=["-c", "raise SystemExit(3)"], two=SAYS)
    found = run(tmp_path)
    assert "error" in found["parts"]["one"] and "result" in found["parts"]["two"]
    assert any("failed" in row for row in markdown_rows(found))
    given_parts(monkeypatch, one=SAYS, two=SAYS)
    assert run(tmp_path)["parts"]["one"]["result"] == STEP


def test_a_part_that_needs_more_than_a_whole_call_is_said(tmp_path, monkeypatch):
    given_parts(monkeypatch, one=["-c", "import time; time.sleep(20)"])
    assert "error" in run(tmp_path, 1.0)["parts"]["one"]


def test_results_of_other_code_are_left_alone(tmp_path, monkeypatch):
    given_parts(monkeypatch, one=SAYS)
    run(tmp_path)
    file = tmp_path / gpu.RESULTS
    file.write_text(json.dumps(json.loads(file.read_text()) | {"commit": "of another day"}))
    with pytest.raises(ValueError, match="--output"):
        run(tmp_path)


def test_full_sizes_ask_for_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="--small"):
        bench_gpu(str(tmp_path), 60.0, "cpu", False, ())


def test_every_part_takes_the_words_it_is_given(tmp_path):
    """What is run on a GPU must not fail there for a misspelt flag or option: all commands are read here."""
    from engine.config.check import check
    from engine.config.compose import composed
    from engine.config.schema import PretrainConfig
    from lab.bench.commands import instruct_config

    for name, words in gpu.parts(gpu.FULL, "cuda", tmp_path).items():
        overrides = [word for word in words if "=" in word and not word.startswith("-")]
        if name.startswith("puzzles"):
            check(PretrainConfig, composed("cfg_pretrain", ["evaluators=[]", *overrides]))
        elif name not in ("tests", "distillation"):
            instruct_config(overrides)
