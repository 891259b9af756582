"""What the bench of distillation prints: every part of a step, for a teacher that computes and one that is read."""

import json

from tests.tiny import run_door

SMALL = ["--hidden-size", "64", "--layers", "1", "--vocab-size", "300", "--rows", "2", "--positions", "32"]


def test_the_bench_tells_the_parts_of_a_step_and_a_state_that_does_not_grow() -> None:
    words = ["distill", *SMALL, "--topk", "8", "--steps", "1"]
    ended = run_door("scripts/bench.py", *words)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    shared = {"student_forward", "loss", "backward", "optimizer", "total"}
    assert set(told["direct"]) == shared | {"teacher_forward", "teacher_topk"}
    assert set(told["cached"]) == shared | {"cache_read"}
    assert told["decoding"]["64"]["state_bytes"] == told["decoding"]["2048"]["state_bytes"] == 1 * 64 * 128 * 4
    assert told["cache_bytes_per_token"] > 8 * (2 + 2) / 2, "ids of two bytes and values of two, hardly compressible"

    strange = run_door("scripts/bench.py", *words, "arch=trm")
    assert strange.code == 2 and "arch=trm" in strange.err
