"""Puzzles on the pretended device: every architecture, the prefix, halting, bad steps, rollouts, ARC's votes, resume."""

from typing import Any

import torch

from dataset.puzzles.format import open_split
from dataset.puzzles.rules import rule_of
from dataset.puzzles.samples import Game
from engine.tasks.rollouts import Effort
from engine.train.evaluate import evaluate
from engine.train.loop import Run, train_step
from evaluators.arc import ARC
from tests.dataset.puzzle_samples import write_parity_dataset
from tests.gpu.place import (
    PRECISE,
    SIXTEEN_BITS,
    Place,
    case,
    from_loader,
    puzzle_items,
    puzzle_run,
    result_of,
    resumed,
    train,
)
from tests.models.small import ARCHS

TRAINED: dict[str, dict[str, Any]] = {
    **{arch: {"arch": arch} for arch in ARCHS},
    "prefix": {"prefix": True},
    "mlp_t": {"mlp_t": True},
    "mlp_t with prefix": {"mlp_t": True, "prefix": True},
    "micro-batches": {"prefix": True, "run": {"gradient_accumulation_steps": 2}},
    "halting by comparison": {"no_ACT_continue": False},
    "several chains": {"chains": 3},
    "only the puzzle table": {"prefix": True, "run": {"freeze_weights": True}},
    "Muon": {"run": {"optimizer": "muon", "lr": 1e-3}},
    "depth curriculum": {"depth_curriculum": [{"until": 0.2, "H_cycles": 1}], "grad_cycles": "2->all"},
}


for name, options in TRAINED.items():

    @case(f"puzzles: {name}", SIXTEEN_BITS if name == "Muon" else PRECISE)
    def trains(at: Place, options: dict[str, Any] = options) -> Any:
        return train(at, puzzle_run(at, **options), puzzle_items())


def spoil(run: Run) -> None:
    """Give one row in flight a state that is not finite."""
    (carry, *_) = run.task.carries  # type: ignore[attr-defined]
    carry.halted = torch.zeros_like(carry.halted)
    state = torch.zeros_like(carry.inner_carry.z_H)
    state[0] = float("nan")
    carry.inner_carry = carry.inner_carry._replace(z_H=carry.inner_carry.z_H + state)


@case("puzzles: a bad step is discarded")
def discards(at: Place) -> Any:
    run = puzzle_run(at, prefix=True)
    for number, (item, _) in enumerate(run.task.feed(from_loader(at, puzzle_items(3)))):
        if number == 1:
            spoil(run)
        train_step(run, item)
    assert run.state.bad_steps == 1 and run.state.freed_rows == 1
    return result_of(run)


def evaluation(at: Place, run: Run, evaluators: tuple[Any, ...] = (), items: Any = None) -> Any:
    found = evaluate(
        run.task, from_loader(at, items or puzzle_items()), ["train"], at.runtime, evaluators=evaluators,
        save_outputs=["preds"], output_dir=at.folder,
    )  # fmt: skip
    return found, (at.folder / "_all_preds.0.safetensors").read_bytes()


@case("puzzles: evaluation")
def evaluates(at: Place) -> Any:
    return evaluation(at, puzzle_run(at, prefix=True))


@case("puzzles: evaluation of several rollouts")
def rolls_out(at: Place) -> Any:
    run = puzzle_run(at, prefix=True)
    run.task.effort = Effort(rollouts=3, noise=0.3)  # type: ignore[attr-defined]
    return evaluation(at, run)


@case("puzzles: evaluation by vote")
def votes_over_rollouts(at: Place) -> Any:
    run = puzzle_run(at, prefix=True)
    run.task.effort = Effort(rollouts=3, noise=0.3, choose="vote")  # type: ignore[attr-defined]
    run.task.rule = ("kept", lambda questions, labels, answers: (answers >= questions).any(-1))  # type: ignore[attr-defined]
    return evaluation(at, run)


@case("puzzles: the rules of games")
def judges(at: Place) -> Any:
    boards = at.runtime.to_device({name: torch.randint(1, 6, (9, 16), dtype=torch.int32) for name in "abc"})
    rules = [rule_of(game) for game in (Game("sudoku", 4, (2, 2)), Game("maze", 4))]
    return [rule.is_kept(*boards.values()) for rule in rules if rule is not None]


@case("puzzles: ARC's votes")
def votes(at: Place) -> Any:
    folder = write_parity_dataset(at.folder / "arc", "arc/default")
    data = open_split(folder, "test")
    stored = data.sets["all"]
    names = {"inputs": stored.inputs, "labels": stored.labels}
    batch = {name: torch.from_numpy(values[:4].astype("int32")) for name, values in names.items()}
    batch["puzzle_identifiers"] = torch.arange(1, 5, dtype=torch.int32)
    run = puzzle_run(at, metadata=data.metadata)
    evaluator = ARC(str(folder), data.metadata)
    report = evaluation(at, run, (evaluator,), [("train", batch, 4)])
    assert "ARC" in report[0]
    return report


@case("puzzles: saved and resumed")
def resumes(at: Place) -> Any:
    return resumed(at, lambda at: puzzle_run(at, prefix=True), puzzle_items(4), [("test", *puzzle_items(1)[0][1:])])
