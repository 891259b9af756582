"""Tuning a teacher on two ranks is the run of one process, and is resumed on another number of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoints.load import load_checkpoint
from src.distillation.run.ram_disk import SHARED_MEMORY
from src.distillation.tuning.config import TeacherFtConfig
from tests.distillation.run_samples import measured
from tests.distillation.teacher_samples import finetune, options, write_corpus, write_llama
from tests.tiny import ROOT, TORCHRUN, run_python

# An epoch has 15 steps, in whose last one the second rank has no row; 7 held-out rows fill no batch of either.
LENGTH = {"max_steps": 17, "eval_interval": 8, "save_interval": 8, "keep_last_n": None, "eval_samples": 7}
LENGTH |= {"lora_dropout": 0.0, "learning_rate": 1e-3, "min_lr": 1e-4}

RANKS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from engine.entry import show
from engine.run import train
from engine.runtime.devices import Runtime
from src.distillation.run import ram_disk
from src.distillation.tuning.config import TeacherFtConfig
from src.distillation.tuning.job import TuneTeacherJob
Runtime.close = lambda runtime: None  # the ranks stay together for the run that follows
ram_disk.RESERVE_BYTES = 0
for options in json.loads(sys.argv[2]):
    show(train(TuneTeacherJob(TeacherFtConfig.model_validate(options))))
os._exit(0)
"""


def test_two_ranks_tune_as_one_process_does(tmp_path: Path) -> None:
    def asked(name: str, **changes: Any) -> TeacherFtConfig:
        return options(tmp_path, **LENGTH, output_dir=str(tmp_path / name), **changes)

    write_llama(tmp_path / "teacher", initializer_range=0.1)
    write_corpus(tmp_path)
    result = finetune(asked("one"))
    assert result is not None
    finetune(asked("passes", physical_batch_size=1, gradient_accumulation_steps=4))
    two = asked("two", ram_disk=True, ram_disk_cleanup=True)
    rest = asked("rest", resume_from=str(tmp_path / "one" / "step_8"))
    program = tmp_path / "ranks.py"
    program.write_text(RANKS)
    runs = [config.model_dump(mode="json") for config in (two, rest)]
    ended = run_python([*TORCHRUN, program, ROOT, json.dumps(runs)], ROOT)
    assert ended.code == 0, ended.err

    first, second = map(json.loads, ended.out.splitlines())
    for found in (first, second):
        assert found["tuned"] == pytest.approx(result["tuned"], rel=1e-6) and found["best_step"] == result["best_step"]
    for name, after in (("two", -1), ("passes", -1), ("rest", 8)):
        lines = [line for line in measured(tmp_path / "one") if line["step"] > after]
        assert len(lines) >= 9
        for line, expected in zip(measured(tmp_path / name), lines, strict=True):
            assert line == pytest.approx(expected, rel=1e-6, abs=1e-6)
    ours, theirs = (load_checkpoint(tmp_path / name / "latest").weights for name in ("one", "two"))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in ours)
    if SHARED_MEMORY.is_dir():
        assert ended.err.count("ram disk: copied") == 1 == ended.err.count("ram disk: removed")
