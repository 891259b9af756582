"""A distillation on two ranks is the run of one process, whoever teaches, and is resumed on another number of ranks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from src.distillation.config import DistillConfig
from src.distillation.run.build import passes_of_rank
from src.distillation.run.job import check_recording, resuming
from src.distillation.teachers import direct
from tests.distillation.cache_samples import direct as open_direct
from tests.distillation.cache_samples import write_cache
from tests.distillation.fake_server import serving
from tests.distillation.run_samples import (
    OPTIONS,
    TRM,
    done,
    end_of,
    history,
    measured,
    perplexity,
    places,
    train,
    words,
    write_world,
)
from tests.distillation.teacher_samples import write_corpus, write_llama
from tests.ranks import run_two_ranks
from tests.tiny import ROOT, TORCHRUN, run_python

MODES: dict[str, dict[str, Any]] = {
    "direct": {},
    "cached": {"teacher_mode": "cached"},
    "ce": {"pretrain_ce_only": True},
    "network": {"teacher_mode": "network", "teacher_model": "none"},
    "trm": {"student": "trm_text", "student_overrides": TRM.replace("fixed", "sampled")},
}
# An epoch has 15 steps, in whose last one the second rank has no row; 7 held-out rows fill no batch of either.
LENGTH = {"max_steps": 17, "eval_interval": 8, "save_interval": 8, "keep_last_n": 9, "eval_perplexity_samples": 7}
LENGTH |= {"learning_rate": 3e-4, "min_lr": 3e-5}

RANKS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from engine.config.flags import FlagParser
from engine.run import train
from engine.runtime.devices import Runtime
from src.distillation.config import DistillConfig
from src.distillation.evaluation.evaluate import perplexity_report
from src.distillation.evaluation.options import PerplexityConfig
from src.distillation.run.job import DistillJob
Runtime.close = lambda runtime: None  # the ranks stay together for the run that follows
*runs, measured = json.loads(sys.argv[2])
for words in runs:
    train(DistillJob(FlagParser(DistillConfig, "").read(words)[0]))
report = perplexity_report(FlagParser(PerplexityConfig, "").read(measured)[0])
if report is not None:
    print(json.dumps(report), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Every mode in one process, split into more passes, and on two ranks, all of which one start of torchrun does."""
    from transformers import LlamaForCausalLM

    root = write_world(tmp_path_factory.mktemp("world"))
    write_cache(root)
    saddle = root / "saddle.yaml"  # so impatient that the controller acts within a few steps
    saddle.write_text("saddle_escape: {patience_steps: 3, loss_improvement_threshold: 0.9, cooldown_steps: 1}\n")
    more = ("--config", str(saddle), "--enable-saddle-interventions")
    passes = {"physical_batch_size": 1, "gradient_accumulation_steps": 4, "warmup_batches": 4}
    with serving(LlamaForCausalLM.from_pretrained(root / "teacher").eval(), max_logprobs=16) as server:
        address, lines = {"teacher_url": server.url}, []
        for mode, changes in MODES.items():
            options = LENGTH | changes | (address if mode == "network" else {})
            done(train(root, f"{mode}-one", *more, **options))
            done(train(root, f"{mode}-passes", *more, **(options | passes)))
            two = words(OPTIONS | places(root, f"{mode}-two") | options)
            rest = words(OPTIONS | places(root, f"{mode}-rest") | options)
            lines += [[*two, *more], [*rest, *more, "--resume-from", str(root / f"{mode}-one" / "step_8")]]
        lines.append(words(OPTIONS | places(root, "direct-one") | {"with_teacher": True, "rows": 7}))
        program = root / "ranks.py"
        program.write_text(RANKS)
        ended = run_python([*TORCHRUN, program, ROOT, json.dumps(lines)], ROOT, timeout=800)
        assert ended.code == 0, ended.err
        yield {"root": root, "report": json.loads(ended.out)}


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 8
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-6, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", ["two", "passes"])
def test_ranks_and_passes_change_nothing(world: dict[str, Any], mode: str, split: str) -> None:
    one, other = world["root"] / f"{mode}-one", world["root"] / f"{mode}-{split}"
    assert_same(measured(other), measured(one))
    torch.testing.assert_close(end_of(other)[0], end_of(one)[0], rtol=0, atol=1e-6)
    assert max(line.get("train/lr_factor", 1) for line in measured(one)) > 1, "the controller has acted"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_a_run_is_resumed_on_another_number_of_ranks(world: dict[str, Any], mode: str) -> None:
    one, rest = world["root"] / f"{mode}-one", world["root"] / f"{mode}-rest"
    assert_same(measured(rest), [line for line in measured(one) if line["step"] > 8])
    torch.testing.assert_close(end_of(rest)[0], end_of(one)[0], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_rank_writes(world: dict[str, Any]) -> None:
    assert len(history(world["root"] / "direct-two")) == 1
    log = (world["root"] / "direct-two" / "train.log").read_text()
    assert log.count("a new run in mode direct") == 1 and "2 ranks" in log


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_perplexity_on_ranks_is_that_of_one_process(world: dict[str, Any]) -> None:
    alone = done(perplexity(world["root"], "direct-one", "--with-teacher", rows=7))
    numbers = [name for name, value in alone.items() if isinstance(value, int | float)]
    together = {name: world["report"][name] for name in numbers}
    assert together == pytest.approx({name: alone[name] for name in numbers}, rel=1e-6)
    assert {"kl", "perplexity"} <= together.keys() and together["rows"] == 7


def test_one_process_ends_what_two_ranks_have_begun(tmp_path: Path) -> None:
    root, one, both = write_world(tmp_path), tmp_path / "one", tmp_path / "both"
    done(train(root, one.name, **LENGTH))
    begun = words(OPTIONS | places(root, both.name) | LENGTH | {"max_steps": 8, "resume_from": "auto"})
    assert run_two_ranks("src/distillation/scripts/train.py", begun, root).report["step"] == 8
    done(train(root, both.name, resume_from="auto", **LENGTH))
    assert_same(measured(both), measured(one))
    torch.testing.assert_close(end_of(both)[0], end_of(one)[0], rtol=0, atol=1e-6)


def test_the_command_under_torchrun_prints_one_result(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    options = OPTIONS | places(tmp_path, "command") | {"pretrain_ce_only": True, "max_steps": 2}
    ended = run_python([*TORCHRUN, "-m", "src.distillation.scripts.train", *words(options)], ROOT)
    assert done(ended)["step"] == 2


@pytest.mark.parametrize(
    ("rows", "at_once", "ranks", "passes"),
    [(4, 2, 1, 2), (4, 2, 2, 1), (8, 1, 2, 4), (16, 16, 2, 1), (12, 4, 2, 2), (12, 5, 1, 3), (14, 5, 2, 7)],
)
def test_a_rank_splits_its_share_into_passes_that_are_no_larger(
    rows: int, at_once: int, ranks: int, passes: int
) -> None:
    assert passes_of_rank(rows, at_once, ranks) == passes


def test_a_step_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient_accumulation_steps.* 6 rows.* 4 ranks"):
        passes_of_rank(6, 2, 4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cache_logits": True}, "cache_logits=true"),
        ({"teacher_mode": "cached", "on_missing": "direct", "teacher_model": "m"}, "on_missing=direct"),
    ],
)
def test_ranks_do_not_write_into_one_cache_on_the_way(options: dict[str, Any], told: str) -> None:
    config = DistillConfig.model_validate(options)
    check_recording(config, 1)
    with pytest.raises(ValueError, match=f"{told}.* 2 ranks.*cache_teacher_logits"):
        check_recording(config, 2)
    check_recording(config.model_copy(update={"pretrain_ce_only": True}), 2)


def test_the_command_to_resume_starts_as_many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resuming(["-m", "wing"], "latest").startswith("torchrun --nproc-per-node 2 -m wing ")
    assert resuming(["-m", "wing"], "latest").endswith(" --resume-from latest")


def test_a_teacher_without_a_number_is_on_the_gpu_of_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def choose(name: str, world_size: int = 1, local_rank: int = 0) -> torch.device:
        asked.append(local_rank)
        return torch.device("cpu")

    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(direct, "choose_device", choose)
    write_llama(tmp_path / "teacher")
    write_corpus(tmp_path)
    open_direct(tmp_path)
    assert asked == [1]
