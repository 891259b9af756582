"""The trainer state of a checkpoint as a distillation resumes it."""

from pathlib import Path
from typing import Any

import pytest

from engine.checkpoints.load import Checkpoint
from engine.config.parse import ConfigError
from src.distillation.run.job import former_facts, resumed_trainer

FACTS = {"corpus": "c", "mode": "ce", "teacher": None, "config": {"eval_interval": 5}}


def checkpoint(state: dict[str, Any], **facts: Any) -> Checkpoint:
    return Checkpoint(
        Path("step_17"), {}, trainer={"state": state, "task": {"seen": 1}}, meta={"distill": FACTS | facts}
    )


@pytest.mark.parametrize(("interval", "iteration", "done"), [(5, 4, 2), (8, 3, 1), (0, 1, 17)])
def test_a_state_whose_passes_were_evaluation_intervals_is_counted_in_epochs(
    interval: int, iteration: int, done: int
) -> None:
    former = checkpoint({"step": 17, "iteration": iteration, "batches_done": done}, config={"eval_interval": interval})
    state = resumed_trainer(former, FACTS, batches_per_epoch=7)["state"]
    assert (state["step"], state["iteration"], state["batches_done"]) == (17, 3, 3)


def test_a_state_of_this_version_stays_as_it_is() -> None:
    state = {"step": 17, "iteration": 3, "batches_done": 3, "evaluations_waited": 0}
    assert resumed_trainer(checkpoint(state), FACTS, batches_per_epoch=7) == {"state": state, "task": {"seen": 1}}


def test_another_corpus_begins_at_its_beginning_and_another_mode_forgets_what_the_controller_saw() -> None:
    state = {"step": 17, "iteration": 3, "batches_done": 3, "evaluations_waited": 0}
    found = resumed_trainer(checkpoint(state), FACTS | {"corpus": "d", "mode": "direct"}, batches_per_epoch=7)
    assert found == {"state": state | {"iteration": 1, "batches_done": 0}, "task": {}}


@pytest.mark.parametrize("facts", [None, 3, [], {}, FACTS | {"config": 3}, {"corpus": "c", "mode": "ce", "config": {}}])
def test_facts_that_no_distillation_has_written_are_refused(facts: Any) -> None:
    with pytest.raises(ConfigError, match="step_17"):
        former_facts(Checkpoint(Path("step_17"), {}, meta={"distill": facts}))
