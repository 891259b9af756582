"""Where a run stands and what is due there: the state that a checkpoint keeps, and the plan that the loop follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class TrainState:
    """Where a run stands; together with weights, optimizers and carry it determines everything that follows."""

    step: int = 0
    iteration: int = 1  # pass over the data, counted from 1
    batches_done: int = 0  # batches of this pass that have been used
    bad_steps: int = 0  # skipped because they were not finite
    bad_steps_in_row: int = 0
    freed_rows: int = 0  # whose state was not finite
    best_value: float | None = None
    best_step: int | None = None  # that had it; None as well where it was reached in an earlier version
    evaluated_step: int = 0  # the last step that has been evaluated
    base_value: float | None = None  # of the best metric, before the first step
    improved_value: float | None = None  # what the next evaluation must improve on
    evaluations_waited: int = 0  # since the last one that improved enough

    @property
    def updates(self) -> int:
        """Steps that have moved the weights."""
        return self.step - self.bad_steps


@dataclass(frozen=True)
class Plan:
    """When the run ends and what is due on the way.

    Without `eval_every_steps` every pass over the data ends in an evaluation, from `first_eval_iteration` on; with it
    these steps are evaluated instead. The end of the run is always evaluated and saved.
    """

    total_steps: int  # the run never takes more
    expected_steps: int  # what the progress bar counts to
    iterations: int
    first_eval_iteration: int = 1
    eval_every_steps: int | None = None
    eval_at_start: bool = False
    save_every_eval: bool = True
    save_every_steps: int | None = None
    log_interval: int = 10
    grad_clip: float | None = None
    max_bad_steps: int = 10
    best_metric: str = "lm_loss"
    patience: int | None = None  # evaluations in a row without improvement that end the run
    min_improvement: float = 0.0  # share of the value that counts as improvement
    save_outputs: Sequence[str] = ()

    def is_over(self, state: TrainState) -> bool:
        is_out_of_patience = self.patience is not None and state.evaluations_waited >= self.patience
        return state.step >= self.total_steps or state.iteration > self.iterations or is_out_of_patience

    def was_evaluation_due(self, state: TrainState) -> bool:
        """Whether the place at which a run resumes is one to evaluate at."""
        if self.eval_every_steps is not None:
            return is_due(state.step, self.eval_every_steps) or self.is_over(state)
        has_ended_pass = state.batches_done == 0 and state.iteration > self.first_eval_iteration
        return has_ended_pass or self.is_over(state)

    def is_better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Whether a value of the best metric beats another one by this share of it; any number beats None and NaN."""
        if not math.isfinite(value):
            return False
        if than is None or not math.isfinite(than):
            return True
        lower_is_better = self.best_metric.endswith(("loss", "perplexity", "bits_per_byte"))
        return value < than * (1 - by) if lower_is_better else value > than * (1 + by)


def is_due(step: int, every: int | None) -> bool:
    """Whether this step is one of every so many; never without a number."""
    return every is not None and step > 0 and step % every == 0
