"""Trying puzzles harder: deeper, and several times with noise, of which the surest try answers."""

import numpy as np
import pytest
import torch

from dataset.common import IGNORE_LABEL_ID
from engine.config.check import check
from engine.config.parse import ConfigError
from engine.config.registry import load_model_class
from engine.config.schema import PretrainConfig
from engine.tasks.puzzles import PuzzleTask
from engine.tasks.rollouts import Effort, Vote, best_rollout, roll_out
from engine.train.evaluate import evaluate
from models.losses.puzzles import ACTLossHead
from tests.tiny import ARCH, CPU, RUN, TRM, flags, logged, pretrain, write_sudoku

ROWS, LENGTH, VOCAB = 8, 6, 7
EFFORT = Effort(rollouts=4, noise=1.0, seed=9)
ARCHS = {
    "trm": {},
    "several chains": {"chains": 3},
    "trm_singlez": {},
    "trm_hier6": {},
    "hrm": {"H_layers": 1},
    "transformers_baseline": {"H_layers": 1, "halt_max_steps": 1},
}
CLASSES = {
    "trm": TRM,
    "several chains": TRM,
    "trm_singlez": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1",
    "trm_hier6": "recursive_reasoning.trm_hier6@TinyRecursiveReasoningModel_ACTV1",
    "hrm": "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
    "transformers_baseline": "recursive_reasoning.transformers_baseline@Model_ACTV2",
}


def make_head(arch: str = "trm", **options) -> ACTLossHead:
    """Random weights, also of the halting head, so that rollouts differ in what they say and in how sure they are."""
    torch.manual_seed(3)
    size = {"seq_len": LENGTH, "vocab_size": VOCAB, "num_puzzle_identifiers": 4}
    head = ACTLossHead(load_model_class(CLASSES[arch])(ARCH | size | ARCHS[arch] | options))
    torch.nn.init.normal_(head.model.inner.q_head.weight)
    return head.eval()


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = {"inputs": (ROWS, LENGTH), "labels": (ROWS, LENGTH), "puzzle_identifiers": (ROWS,)}
    return {name: torch.randint(0, 4, shape, generator=generator, dtype=torch.int32) for name, shape in names.items()}


@torch.no_grad()
def tries(head: ACTLossHead, batch: dict[str, torch.Tensor], effort: Effort = EFFORT) -> list[dict[str, torch.Tensor]]:
    return [roll_out(head.model, batch, effort, number)[1] for number in range(effort.rollouts)]


@torch.no_grad()
def chosen(head: ACTLossHead, batch: dict[str, torch.Tensor], effort: Effort = EFFORT):
    return best_rollout(head, batch, {"preds", "logits", "q_halt_logits", "inputs"}, effort)


@pytest.mark.parametrize("options", [{}, {"mlp_t": True, "pos_encodings": "none"}])
def test_a_try_in_a_disguise_says_of_the_plain_puzzle_what_it_says_of_the_disguised_one(options):
    def draw(seed):
        rng = np.random.default_rng(seed)
        return rng.permutation(LENGTH), rng.permutation(VOCAB)

    head, batch = make_head(**options), make_batch()
    first, second = tries(head, batch, Effort(rollouts=2, seed=9, disguise=draw))
    assert torch.equal(first["logits"], tries(head, batch, Effort())[0]["logits"])
    cells, names = draw([9, 1])
    disguised = {**batch, "inputs": torch.from_numpy(names)[batch["inputs"].long()[:, cells]].int()}
    (expected,) = tries(head, disguised, Effort())
    for place, cell in enumerate(cells):
        for token, name in enumerate(names):
            assert torch.equal(second["logits"][:, cell, token], expected["logits"][:, place, name])
    assert torch.equal(second["q_halt_logits"], expected["q_halt_logits"])
    _, wanted = chosen(head, batch, Effort(rollouts=4, seed=9, disguise=draw))
    assert torch.equal(wanted["inputs"], batch["inputs"])


def test_each_row_is_answered_by_its_surest_rollout():
    head, batch = make_head(), make_batch()
    attempts = tries(head, batch)
    sureness = torch.stack([attempt["q_halt_logits"] for attempt in attempts])
    winners = sureness.argmax(0)
    assert len(set(winners.tolist())) > 1 and 0 in winners, "or the test would not see the choice"
    _, outputs = chosen(head, batch)
    for row, winner in enumerate(winners.tolist()):
        assert torch.equal(outputs["logits"][row], attempts[winner]["logits"][row])
        assert torch.equal(outputs["preds"][row], attempts[winner]["logits"][row].argmax(-1))
        assert outputs["q_halt_logits"][row] == sureness[winner, row]
    assert torch.equal(outputs["inputs"], batch["inputs"])


def elected(answers: list[list[int]], logits: torch.Tensor) -> list[int]:
    """By definition: the most frequent answer, then the summed probability, then the earliest; its last try."""
    numbers = range(len(answers))
    alike = [[other for other in numbers if answers[other] == answers[number]] for number in numbers]
    probabilities = logits.sigmoid()
    best = max(numbers, key=lambda n: (len(alike[n]), float(sum(probabilities[m] for m in alike[n])), -alike[n][0]))
    return alike[best]


def test_after_every_try_the_vote_stands_as_counted_afresh():
    generator = torch.Generator().manual_seed(2)
    tries_, rows = 9, 200
    answers = torch.randint(0, 2, (tries_, rows, 2), generator=generator)  # four possible ones
    logits = torch.randn(tries_, rows, generator=generator)
    logits[:, ::2] = 90.0  # as sure as can be, so that sums tie exactly
    vote, late = Vote(), 0
    for number in range(tries_):
        vote.add(number, {"logits": torch.eye(2)[answers[number]], "q_halt_logits": logits[number]})
        for row in range(rows):
            members = elected(answers[: number + 1, row].tolist(), logits[: number + 1, row])
            assert vote.best["logits"][row].argmax(-1).tolist() == answers[members[0], row].tolist()
            late += members[0] > 0
            assert vote.best["q_halt_logits"][row] in logits[members, row]
    assert late > rows


def test_the_vote_answers_whole_boards_and_its_metrics_are_of_them():
    head, batch = make_head(), make_batch()
    effort = Effort(rollouts=6, noise=0.3, seed=9, choose="vote")
    attempts = tries(head, batch, effort)
    answers = torch.stack([attempt["logits"].argmax(-1) for attempt in attempts])
    logits = torch.stack([attempt["q_halt_logits"] for attempt in attempts])
    winners = [elected(answers[:, row].tolist(), logits[:, row]) for row in range(ROWS)]
    assert any(1 < len(members) < 6 for members in winners), "or the test would not see a vote"
    batch["labels"] = torch.stack([answers[members[0], row] for row, members in enumerate(winners)]).int()
    sums, outputs = chosen(head, batch, effort)
    assert torch.equal(outputs["preds"].int(), batch["labels"])
    assert int(sums["exact_accuracy"]) == int(sums["pass_any"]) == ROWS > int(sums["pass_plain"])


def test_metrics_tell_what_was_chosen_and_what_could_have_been():
    """The labels are what rollout 0, 1, 2, ... said of row 0, 1, 2, ..., so each row is solved by some rollout."""
    head, batch, effort = make_head(), make_batch(), Effort(rollouts=4, noise=1.0, seed=1)
    answers = torch.stack([attempt["logits"].argmax(-1) for attempt in tries(head, batch, effort)])
    winners = torch.stack([attempt["q_halt_logits"] for attempt in tries(head, batch, effort)]).argmax(0)
    batch["labels"] = torch.stack([answers[row % 4, row] for row in range(ROWS)]).int()
    solved = [[torch.equal(answers[n, row].int(), batch["labels"][row]) for n in range(4)] for row in range(ROWS)]
    sums, outputs = chosen(head, batch, effort)
    counts = {name: int(sums[name]) for name in ("count", "exact_accuracy", "pass_plain", "pass_any")}
    right = sum(row[winner] for row, winner in zip(solved, winners, strict=True))
    assert counts == {
        **{"count": ROWS, "pass_any": ROWS},
        **{"exact_accuracy": right, "pass_plain": sum(row[0] for row in solved)},
    }
    assert 0 < right < ROWS and right != counts["pass_plain"], "or the test could not tell them apart"
    assert int(sums["steps"]) == 3 * ROWS
    loss = sum(head.loss_fn(outputs["logits"], batch["labels"]).mean(-1))
    torch.testing.assert_close(sums["lm_loss"], loss)

    batch["labels"][2:] = IGNORE_LABEL_ID
    sums, _ = chosen(head, batch, effort)
    assert (int(sums["count"]), int(sums["pass_any"])) == (2, 2), "rows without labels, such as padding, do not count"


def test_a_rule_is_asked_of_the_chosen_answers_to_rows_that_count():
    head, batch, effort = make_head(), make_batch(), Effort(rollouts=4, noise=1.0, seed=1)
    batch["labels"][5:] = IGNORE_LABEL_ID  # padding
    _, outputs = chosen(head, batch, effort)
    seen = []

    def is_kept(questions, labels, answers):
        seen.append((questions, labels, answers))
        return torch.arange(ROWS) != 1

    with torch.no_grad():
        task = PuzzleTask(head, CPU, seed=0, effort=effort, rule=("kept", is_kept))
        sums, wanted = task.eval_batch(batch, ())
    assert int(sums["kept"]) == 4 and wanted == {}
    expected = batch["inputs"], batch["labels"], outputs["preds"]
    assert all(torch.equal(one, other) for one, other in zip(seen[0], expected, strict=True))


@pytest.mark.parametrize("effort", [Effort(), EFFORT])
def test_the_numbers_of_an_evaluation_are_known_before_it(effort):
    rule = ("kept", lambda questions, labels, answers: labels[:, 0] == answers[:, 0])
    task = PuzzleTask(make_head(), CPU, seed=0, effort=effort, rule=rule)
    (found,) = evaluate(task, [("all", make_batch(), 4)], ["all"], CPU).values()
    assert found.keys() == set(task.eval_metrics())


@pytest.mark.parametrize("arch", ["trm", "several chains"])
def test_the_first_rollout_is_the_usual_evaluation_bit_for_bit(arch):
    batch = make_batch()
    usual = PuzzleTask(make_head(arch), CPU, seed=0)
    with torch.no_grad():
        _, outputs = usual.eval_batch(batch, {"logits", "q_halt_logits"})
    first = tries(make_head(arch), batch)[0]
    assert all(torch.equal(outputs[name], first[name]) for name in outputs)


@pytest.mark.parametrize("chains", [1, ROWS])
def test_a_rollout_depends_on_seed_and_number_but_not_on_the_rows_around_it(chains):
    head, batch = make_head(chains=chains), make_batch()
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    whole, again, other = chosen(head, batch), chosen(head, batch), chosen(head, batch, Effort(None, 4, 1.0, seed=6))
    assert torch.equal(whole[1]["logits"], again[1]["logits"])
    assert not torch.equal(whole[1]["logits"], other[1]["logits"])
    logits = [attempt["logits"] for attempt in tries(head, batch)]
    assert all(not torch.equal(one, two) for i, one in enumerate(logits) for two in logits[:i])

    parts = [
        chosen(head, {name: value[rows] for name, value in batch.items()}) for rows in ([0], [5, 1, 4], [2, 3, 6, 7])
    ]  # as other batches or ranks would hold them
    order = torch.tensor([0, 5, 1, 4, 2, 3, 6, 7])
    for name, value in whole[1].items():
        split = torch.cat([outputs[name] for _, outputs in parts])
        torch.testing.assert_close(split, value[order], rtol=0, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1]


def test_fresh_noise_comes_before_every_supervision_step():
    head, batch = make_head(), make_batch()
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    step = head.model.inner.step

    def spying(z, x, context, calls_with_grad, *network):
        before.append(z.z_L)
        z, answers = step(z, x, context, calls_with_grad, *network)
        after.append(z.z_L)
        return z, answers

    head.model.inner.step = spying
    tries(head, batch, Effort(None, 2, 0.5, 5))
    start = before[0]  # of the first rollout, which is that of all
    plain, noisy = (
        [one - other for one, other in zip(before[i : i + 3], [start, *after[i : i + 2]], strict=True)] for i in (0, 3)
    )
    assert all(not noise.any() for noise in plain)
    assert all(0.45 < noise.std() < 0.55 for noise in noisy)
    for values in (torch.stack(noisy), noisy[0], noisy[0].transpose(0, 1)):  # steps, puzzles, positions
        likeness = torch.corrcoef(values.flatten(1)).fill_diagonal_(0)
        assert (likeness.abs() < 0.8).all(), "each has noise of its own"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_architecture_can_be_tried_several_times(arch, dtype):
    head, batch = make_head(arch, forward_dtype=dtype), make_batch()
    plain, noisy = (attempt["logits"] for attempt in tries(head, batch, Effort(None, 2, 1.0)))
    assert torch.isfinite(noisy.float()).all() and not torch.equal(plain, noisy)
    assert noisy.dtype == plain.dtype == getattr(torch, dtype)


def test_deeper_evaluation_is_shown_and_leaves_training_as_it_was():
    batch = make_batch()
    results = {}
    for steps in (None, 1, 7):
        task = PuzzleTask(make_head(), CPU, seed=0, effort=Effort(halt_max_steps=steps))
        with torch.no_grad():
            results[steps], _ = task.eval_batch(batch, ())
        for step in (1, 2, 3):
            task.train_step(("all", batch, ROWS), step)
            task.commit()
        assert (task.carries[0].steps == 3).all() and task.carries[0].halted.all(), "training stays at its own depth"
    assert {steps: int(sums["steps"]) // ROWS for steps, sums in results.items()} == {None: 3, 1: 1, 7: 7}
    assert len({float(sums["lm_loss"]) for sums in results.values()}) == 3


def test_every_supervision_step_is_scored_as_an_evaluation_that_ends_there():
    batch = make_batch()
    batch["labels"][0] = IGNORE_LABEL_ID  # padding, which counts nowhere
    head = make_head()
    with torch.no_grad():
        batch["labels"][1] = solved = ends_with(head, batch, 2)  # so that a row is right where it was not before
        assert not torch.equal(solved, ends_with(head, batch, 1))
        ends = [PuzzleTask(head, CPU, seed=0, effort=Effort(steps)).eval_batch(batch, ())[0] for steps in (1, 2, 3)]
        sums, wanted = PuzzleTask(head, CPU, seed=0, effort=Effort(3, by_step=True)).eval_batch(batch, ("preds",))
    assert set(wanted) == {"preds"}
    assert [int(sums[f"depth_{step}/exact_accuracy"]) for step in (1, 2, 3)] == [int(e["exact_accuracy"]) for e in ends]
    assert int(sums["depth_2/exact_accuracy"]) == 1 and int(sums["depth_1/exact_accuracy"]) == 0
    assert [float(sums[f"depth_{step}/token_loss"]) for step in (1, 2, 3)] == [float(e["lm_loss"]) for e in ends]
    assert {name: float(sums[name]) for name in ends[2]} == {name: float(value) for name, value in ends[2].items()}


def ends_with(head, batch, steps):
    """The answer to row 1 after so many steps."""
    _, wanted = PuzzleTask(head, CPU, seed=0, effort=Effort(steps)).eval_batch(batch, ("preds",))
    return wanted["preds"][1].to(batch["labels"].dtype)


def test_evaluators_see_the_chosen_rollouts():
    class Judge:
        required_outputs = {"preds", "q_halt_logits"}

        def begin_eval(self):
            self.seen = []

        def update_batch(self, batch, preds):
            self.seen.append(preds)

        def result(self, save_path, rank, world_size, group):
            return {"rows": float(sum(len(preds["preds"]) for preds in self.seen))}

    head, batch, judge = make_head(), make_batch(), Judge()
    task = PuzzleTask(head, CPU, seed=0, effort=EFFORT)
    report = evaluate(task, [("all", batch, ROWS)], ["all"], CPU, evaluators=[judge])
    _, outputs = chosen(head, batch)
    assert report["Judge"] == {"rows": ROWS}
    assert all(torch.equal(judge.seen[0][name], outputs[name]) for name in judge.required_outputs)
    assert {"pass_plain", "pass_any", "exact_accuracy"} <= report["all"].keys()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rollouts": 4}, "eval: rollouts=4"),
        ({"noise": 0.3}, "eval: noise=0.3"),
        ({"choose": "vote"}, "eval: choose=vote"),
        ({"choose": "most", "rollouts": 4, "noise": 0.3}, "eval.choose"),
        ({"rollouts": 0}, "eval.rollouts: input should be greater than or equal to 1, found 0"),
        ({"noise": -1.0, "rollouts": 2}, "eval.noise: input should be greater than or equal to 0, found -1.0"),
        ({"noise": float("inf"), "rollouts": 2}, "eval.noise: input should be a finite number"),
        ({"halt_max_steps": 0}, "eval.halt_max_steps: input should be greater than or equal to 1, found 0"),
        ({"by_step": True, "rollouts": 3, "noise": 0.1}, "by_step=true"),
        ({"validation_split": 1}, "eval.validation_split: input should be less than 1, found 1"),
        ({"rolouts": 3}, "eval.rolouts: unknown key, did you mean rollouts?"),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(options, told):
    run = RUN | {"arch": {"name": TRM} | ARCH, "data_paths": ["unused"]}
    with pytest.raises(ConfigError) as error:
        check(PretrainConfig, run | {"eval": options})
    assert told in str(error.value)


def test_a_run_trains_the_same_however_hard_it_is_evaluated(tmp_path):
    data = write_sudoku(tmp_path / "data")
    usual, hard = tmp_path / "usual", tmp_path / "hard"
    options = {"eval.rollouts": 3, "eval.noise": 0.5, "eval.halt_max_steps": 5}
    assert pretrain(flags(data, usual, epochs=6)).code == 0
    ended = pretrain(flags(data, hard, epochs=6, **options))
    assert ended.code == 0, ended.err
    lines = [[{k: v for k, v in line.items() if not k.startswith("all/")} for line in logged(x)] for x in (usual, hard)]
    assert lines[0] == lines[1]
    report = ended.report["all"]
    assert 0 <= report["valid_boards"] <= 1
    assert report["steps"] == 5.0 and report["pass_any"] >= max(report["exact_accuracy"], report["pass_plain"])

    judge = {"load_checkpoint": str(hard / "latest"), "eval_only": True}
    other_batches = pretrain(flags(data, tmp_path / "none", global_batch_size=5, **options, **judge)).report["all"]
    del report["q_halt_loss"], other_batches["q_halt_loss"]  # to which padding adds, as in the reference
    assert other_batches == pytest.approx(report, rel=1e-5, abs=1e-6)
    plain = pretrain(flags(data, tmp_path / "none", **judge, **{"eval.halt_max_steps": 5})).report["all"]
    assert plain["exact_accuracy"] == report["pass_plain"] and "pass_any" not in plain
    shown = pretrain(flags(data, tmp_path / "none", **judge)).report["all"]
    assert shown["steps"] == 3.0
