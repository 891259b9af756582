"""Students of both kinds: what the teacher is asked for them, what they learn from it, and that they can be talked to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.config.flags import merged
from engine.tasks.protocol import over_ranks
from src.distillation.config import DistillConfig
from src.distillation.corpus.corpora import Corpora, open_corpora
from src.distillation.run import build
from src.distillation.student.arch import student_arch
from src.distillation.student.saddle import PlateauController
from src.distillation.targets.signal import TeacherSignal
from src.distillation.task import DistillTask
from tests.distillation.run_samples import OPTIONS, RETNET, TRM, done, end_of, measured, places, train, write_world
from tests.engine.text_samples import ONE_AT_A_TIME, gradients, on_ranks
from tests.tiny import CPU, run_door

STUDENTS = {
    "retnet": {"student": "retnet", "student_overrides": RETNET},
    "trm": {"student": "trm_text", "student_overrides": TRM},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("students"))


class Asked:
    """A teacher that remembers what it was asked and said."""

    def __init__(self, teacher) -> None:
        self.teacher, self.facts = teacher, teacher.facts
        self.rows: list[list[int]] = []
        self.said: list[TeacherSignal] = []

    def signal(self, batch):
        self.rows.append(batch["row_id"].tolist())
        self.said.append(self.teacher.signal(batch))
        return self.said[-1]

    def close(self) -> None:
        self.teacher.close()


def config_of(world: Path, name: str, **changes) -> DistillConfig:
    paths = {key: str(value) for key, value in places(world, "unused").items()}
    return merged(DistillConfig, OPTIONS | paths | STUDENTS[name] | changes)


def task_of(world: Path, config: DistillConfig) -> tuple[DistillTask, Asked, Corpora]:
    corpora = open_corpora(config, CPU)
    torch.manual_seed(0)
    head = build.build_student(config, student_arch(config), corpora.tokenizer, CPU)
    teacher = Asked(build.teacher_of(config, corpora, CPU))
    task = DistillTask(head, CPU, teacher, seed=0, total_steps=9, micro_batches=config.gradient_accumulation_steps)
    return task, teacher, corpora


@pytest.mark.parametrize("name", STUDENTS)
def test_the_teacher_is_asked_once_for_each_row_whatever_the_depth(world, name):
    task, teacher, corpora = task_of(world, config_of(world, name))
    items = iter(corpora.train)
    for step in (1, 2, 3):
        item = next(items)
        before = len(teacher.rows)
        sums = task.train_step(item, step)
        assert [row for rows in teacher.rows[before:] for row in rows] == item[1]["row_id"].tolist()
        depth = 3 if name == "trm" else 1
        assert int(sums["steps"]) == depth * int(sums["count"]) and ("depth_3/kd_loss" in sums) == (depth == 3)
    assert len(teacher.rows) == 3 * 2  # two micro-batches a step


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("step", [1, 15])
def test_ranks_and_passes_make_the_same_update(world, name, step):
    """The last of an epoch's 15 steps has one row, so that a second rank has none."""

    def update(ranks: int, passes: int = 1):
        config = config_of(world, name, gradient_accumulation_steps=passes, physical_batch_size=4 // passes)

        def work(runtime):
            corpora = open_corpora(config, runtime)
            corpora.train.start_from(1, step - 1)
            with ONE_AT_A_TIME:
                torch.manual_seed(0)
                head = build.build_student(config, student_arch(config), corpora.tokenizer, runtime)
            split = build.passes_of_rank(config.rows_per_step, config.physical_batch_size, ranks)
            told, teacher = [], build.teacher_of(config, corpora, runtime)
            options = {"micro_batches": split, "checks_first_loss": True, "warn": told.append}
            options["controller"] = PlateauController(config.saddle_escape)
            task = DistillTask(head, runtime, teacher, seed=0, total_steps=9, **options)
            sums = task.train_step(next(iter(corpora.train)), step)
            found = gradients(head)
            runtime.all_reduce_sum_([*found.values()])
            task.observe(step, sums, 1.0)
            report = task.train_report(over_ranks(sums, runtime), 4)
            return found, report, task.state_dict(), told

        first, *others = on_ranks(ranks, work)
        assert all(other[2:] == first[2:] for other in others), "ranks know the same"
        return first

    grads, report, state, told = update(1)
    assert report["kd"] > 0 and report["lr_factor"] == 1 and not told
    for ranks, passes in ((1, 2), (2, 1), (2, 4)):
        other, again, known, _ = update(ranks, passes)
        torch.testing.assert_close(other, grads, rtol=0, atol=1e-6)
        assert again == pytest.approx(report, rel=1e-6)
        assert known["controller"]["losses"] == pytest.approx(state["controller"]["losses"], rel=1e-6)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_loss_is_the_mean_over_tokens_of_what_is_known_of_each(world, name):
    """A gradient by hand, over the whole batch at once, from logits of the model's own forward pass."""
    config = config_of(world, name, distill_alpha=0.3, teacher_kind="dense")
    task, teacher, corpora = task_of(world, config)
    item = next(iter(corpora.train))
    task.train_step(item, 1)
    found = {
        key: p.grad.clone() for key, p in task.head.named_parameters() if p.grad is not None and "q_head" not in key
    }
    task.head.zero_grad()

    batch = item[1]
    core = task.head.model.inner
    labels = batch["labels"].flatten().long()
    places = labels != -100
    logprobs = torch.cat([said.logprobs for said in teacher.said]).flatten(0, 1)[places]
    x, context = core.embed(batch), core.context(batch)
    z = core.initial_latents(x)
    depth = 3 if name == "trm" else 1
    for _ in range(depth):
        z, answers = core.step(z, x, context)
        for answer in answers:
            logits = core.lm_head(core.hidden(answer)).flatten(0, 1)[places].float().log_softmax(-1)
            ce = -logits.gather(-1, labels[places][:, None]).mean()
            kl = (logprobs.exp() * (logprobs - logits)).sum(-1).mean()
            ((0.3 * ce + 0.7 * kl) / depth / len(answers)).backward(retain_graph=True)
        z = type(z)(*(state.detach() for state in z))
    for key, value in found.items():
        own = dict(task.head.named_parameters())[key].grad
        torch.testing.assert_close(value, own, rtol=1e-3, atol=2e-6, msg=key)


def test_a_recursive_student_learns_at_every_depth_and_when_to_stop(world):
    done(train(world, "deep", max_steps=30, learning_rate=1e-2, **STUDENTS["trm"]))
    first, *_, last = [line for line in measured(world / "deep") if "train/kd" in line]
    assert last["train/kd"] < first["train/kd"] - 0.5
    assert all(last[f"train/depth_{n}/ce"] < first[f"train/depth_{n}/ce"] - 0.5 for n in (1, 2, 3))
    assert last["train/q_halt_loss"] < first["train/q_halt_loss"]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_can_be_talked_to(world, name):
    output = world / f"talks-{name}"
    done(train(world, output.name, "--pretrain-ce-only", max_steps=1, **STUDENTS[name]))
    ended = run_door(
        "generate_instruct.py", "--checkpoint", output, "--message", "ab", "--max-output-tokens", 5, "--json"
    )
    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    assert 1 <= len(record["tokens"]) <= 5 and record["prompt_tokens"] == len("<[USER]\nab\n[ASSISTANT]\n")
    again = run_door(
        "generate_instruct.py", "--checkpoint", output / "checkpoint_latest.pt", "--message", "ab",
        "--max-output-tokens", 5, "--json", "--mode", "recompute",
    )  # fmt: skip
    assert json.loads(again.out)["tokens"] == record["tokens"]


def test_a_student_begins_with_weights_of_the_teacher_and_goes_on_without_them(world):
    sizes = "hidden_size=32 num_heads=4 H_layers=2 expansion=2 value_expansion=1 tie_embeddings=false"
    wide = {"student_overrides": sizes}
    slow = {"learning_rate": 1e-9, "min_lr": 0, "max_steps": 1}
    ended = train(world, "taken", "--init-from-teacher", "embed,mlp", "--pretrain-ce-only", **wide, **slow)
    done(ended)
    assert "from the teacher: feed-forward layers" in ended.err and "the first cross-entropy" not in ended.err
    theirs = load_file(world / "teacher" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    own = end_of(world / "taken")[0]["model.inner.retention_level.layers.1.mlp.gate_up_proj.weight"].chunk(2)[1]
    torch.testing.assert_close(own[: len(theirs)], theirs, rtol=0, atol=1e-5)

    start = ["--resume-from", str(world / "taken"), "--init-from-teacher", "embed,mlp"]
    ended = train(world, "taken", *start, max_steps=2, **wide)
    done(ended)
    assert "from the teacher" not in ended.err
