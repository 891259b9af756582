"""What the border refuses that no single option can."""

import copy
from pathlib import Path

import pytest

from engine.config.check import check
from engine.config.compose import composed
from engine.config.parse import ConfigError
from engine.config.schema import PretrainConfig
from engine.config.text import InstructConfig


def test_options_of_questions_that_are_not_asked_are_refused() -> None:
    words = ["dataset.source=sample", "dataset.composition.hops=5"]
    with pytest.raises(ConfigError, match="composition.hops=5"):
        check(InstructConfig, composed("cfg_pretrain_instruct", words))
    for asked in ("dataset.composition.mix=true", "dataset.source=composition"):
        check(InstructConfig, composed("cfg_pretrain_instruct", [*words, asked]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset.repo=Open-Orca/OpenOrca", "dataset.source=sample"], "repo=Open-Orca/OpenOrca"),
        (["dataset.sample=0.5", "dataset.source=composition"], "sample=0.5"),
        (["dataset.repo=HERE", "dataset.source=hub"], "source=hub"),
        (["dataset.repo=HERE", "dataset.data_dir=x"], "data_dir=x"),
    ],
)
def test_options_of_a_corpus_that_is_not_read_are_refused(words: list[str], told: str, tmp_path: Path) -> None:
    words = [word.replace("HERE", str(tmp_path)) for word in words]
    with pytest.raises(ConfigError, match=told):
        check(InstructConfig, composed("cfg_pretrain_instruct", words))
    check(InstructConfig, composed("cfg_pretrain_instruct", words[:1]))


@pytest.mark.parametrize(("repo", "is_of_orca"), [("Open-Orca/SlimOrca", True), ("someone/else", False)])
def test_only_orca_corpora_have_their_system_prompts(repo: str, is_of_orca: bool) -> None:
    config = check(InstructConfig, composed("cfg_pretrain_instruct", [f"dataset.repo={repo}"]))
    assert config.dataset.is_of_orca == is_of_orca


def test_a_model_that_reads_once_is_not_evaluated_deeper() -> None:
    words = ["arch=retnet_tiny", "eval.halt_max_steps=3"]
    with pytest.raises(ConfigError, match="eval.halt_max_steps=3"):
        check(InstructConfig, composed("cfg_pretrain_instruct", words))
    check(InstructConfig, composed("cfg_pretrain_instruct", ["arch=dense_text", "eval.halt_max_steps=3"]))


def test_options_of_the_loss_of_puzzles_are_refused_for_text() -> None:
    with pytest.raises(ConfigError, match=r"arch.loss.label_smoothing=0.1"):
        check(InstructConfig, composed("cfg_pretrain_instruct", ["arch.loss.label_smoothing=0.1"]))
    check(PretrainConfig, composed("cfg_pretrain", ["arch.loss.label_smoothing=0.1"]))


def test_an_average_that_is_not_taken_does_not_begin_late() -> None:
    with pytest.raises(ConfigError, match="ema_start=5"):
        check(PretrainConfig, composed("cfg_pretrain", ["ema_start=5"]))


@pytest.mark.parametrize(
    ("config_class", "name", "words"),
    [
        (InstructConfig, "cfg_pretrain_instruct", ["arch=trm_text", "arch.chains=4"]),
        (PretrainConfig, "cfg_pretrain", ["arch=hrm", "arch.chains=4"]),
        (PretrainConfig, "cfg_pretrain", ["arch.chains=4", "arch.no_ACT_continue=false"]),
        (PretrainConfig, "cfg_pretrain", ["arch.chains=0"]),
    ],
)
def test_several_chains_are_of_trm_on_puzzles(config_class, name, words) -> None:
    with pytest.raises(ConfigError, match="chains"):
        check(config_class, composed(name, words))
    check(PretrainConfig, composed("cfg_pretrain", ["arch.chains=4"]))


def test_problems_come_out_of_another_process_as_they_were() -> None:
    error = ConfigError(["lr=-1 is below 0", "seed is missing"])
    again = copy.copy(error)  # as pickle does it
    assert type(again) is ConfigError and str(again) == str(error) and again.problems == error.problems
