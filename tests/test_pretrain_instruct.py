"""The instruction training program: architectures, splits of a batch, resumes, and bad input in words."""

import json
import math
import os
import re
import signal
from unittest import mock

import pytest

from engine.config.check import check
from engine.config.compose import composed
from engine.config.parse import ConfigError
from engine.config.text import InstructConfig
from engine.tasks.persistent_text import PersistentTextTask
from engine.tasks.text import TextTask
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import TORCHRUN, assert_same_end, end, logged, start, steps_on_disk

SMALL = ["arch.hidden_size=32", "arch.num_heads=2", "arch.expansion=1", "device=cpu", "compile=false"]
SAMPLE = ["dataset.source=sample", "dataset.sample_size=150", "dataset.seq_len=64", "global_batch_size=4"]
ARCHS = [
    *(["arch=trm_text"], ["arch=trm"], ["arch=dense_text"], ["arch=looped_text"], ["arch=trm_tiny"]),
    *(["arch=hrm", "arch.H_layers=1"], ["arch=trm_hier6"], ["arch=trm_singlez"], ["arch=prefix_text"]),
    ["arch=trm_hf"],
    ["arch=trm_text", "arch.recursion=carry", "arch.prefix_mask=true", "loss.reduction=sequence", "ema=true"],
    ["arch=trm", "arch.recursion=unrolled", "arch.halt_policy=sampled", "loss.chunked=false"],
]
MODES = {
    "unrolled": {},
    "carry": {"recursion": "carry"},
    "learned": {"recursion": "carry", "halt_policy": "learned", "halt_exploration_prob": 0.3},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text") / "data")


@pytest.fixture(scope="module")
def sample_dir(tmp_path_factory):
    """Where the tokenizer of the built-in corpus is kept between runs."""
    return tmp_path_factory.mktemp("sample")


def refused(arguments: list[str]) -> str:
    ended = train_text(arguments)
    assert ended.code == 1 and ended.out == "" and "Traceback" not in ended.err, ended
    return ended.err[ended.err.index("error: ") :]


@pytest.mark.parametrize("words", ARCHS, ids=lambda words: " ".join(words).replace("arch", "").replace("=", ""))
def test_every_architecture_trains_on_the_built_in_conversations(words, tmp_path, sample_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = train_text([*words, *SMALL, *SAMPLE, f"dataset.data_dir={sample_dir}", "max_steps=2", "run_name=mine"])
    assert ended.code == 0, ended.err
    (line,) = ended.out.splitlines()
    report = json.loads(line)["test"]
    assert 0 < report["token_loss"] < 20 and report["count"] > 0, "stdout holds the result and nothing else"
    assert os.listdir(tmp_path) == ["checkpoints"] and os.listdir("checkpoints/SlimOrca-ACT") == ["mine"]
    run = tmp_path / "checkpoints" / "SlimOrca-ACT" / "mine"
    assert steps_on_disk(run) == [2] and (run / "step_2" / "tokenizer.model").exists()
    lines = logged(run)
    assert [entry["step"] for entry in lines] == [1, 2, 2]
    assert all(math.isfinite(entry["train/token_loss"]) for entry in lines[:2])
    assert re.search(r"parameters: [\d,]+ trunk, [\d,]+ embedding and heads", ended.err)


@pytest.mark.parametrize("form", ["run_name={}", "+run_name={}", "++run_name={}"])
def test_both_documented_forms_name_the_run(form, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in text_flags(data, tmp_path, max_steps=1) if not word.startswith("checkpoint_path")]
    assert train_text([*words, form.format("mine"), "+project_name=ours"]).code == 0
    assert (tmp_path / "checkpoints" / "ours" / "mine" / "step_1" / "model.safetensors").exists()


@pytest.mark.parametrize("value", ["1", "true"])
def test_disable_compile_keeps_compiling_off(value, data, tmp_path, monkeypatch):
    monkeypatch.setenv("DISABLE_COMPILE", value)
    ended = train_text(text_flags(data, tmp_path / "run", compile=True, max_steps=1))
    assert ended.code == 0 and "compile off" in ended.err


def test_a_batch_larger_than_the_corpus_shrinks_to_it_and_says_so(data, tmp_path):
    ended = train_text(text_flags(data, tmp_path / "run", global_batch_size=48, max_steps=1))
    assert ended.code == 0 and re.search("global_batch_size=48.* 42$", ended.err, re.MULTILINE)
    message = refused(text_flags(data, tmp_path / "more", global_batch_size=48, gradient_accumulation_steps=48))
    assert "No train batches available: 42 examples" in message and "dataset.subset_size" in message


def test_an_evaluation_needs_no_training_batch(data, tmp_path):
    assert train_text(text_flags(data, tmp_path / "run", max_steps=1)).code == 0
    changes = {"load_checkpoint": str(tmp_path / "run"), "eval_only": True, "gradient_accumulation_steps": 48}
    ended = train_text(text_flags(data, tmp_path / "no", global_batch_size=48, **changes))
    assert ended.code == 0 and "test" in json.loads(ended.out) and "global_batch_size" not in ended.err


def spoiled(data, folder, content=None):
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes((data / "tokenizer.model").read_bytes())
    if content is not None:
        (folder / "SlimOrca.jsonl").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty, expected one JSON object a line"),
        ('{"conversations": [', "SlimOrca.jsonl.* line 1"),
        (None, "No corpus in .*dataset.source=sample"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused(content, told, data, tmp_path):
    folder = spoiled(data, tmp_path / "data", content)
    assert re.search(told, refused(text_flags(folder, tmp_path / "run")), flags=re.DOTALL)


def test_a_tokenizer_that_cannot_be_used_is_refused(data, tmp_path):
    folder = spoiled(data, tmp_path / "data", (data / "SlimOrca.jsonl").read_text())
    (folder / "tokenizer.model").write_bytes(b"no model")
    assert "tokenizer" in refused(text_flags(folder, tmp_path / "run"))
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.model" in refused(text_flags(folder, tmp_path / "run"))


def test_without_held_out_conversations_training_goes_on_and_says_so(data, tmp_path):
    changes = {"dataset__test_ratio": 0, "max_steps": 2}
    ended = train_text(text_flags(data, tmp_path / "run", **changes))
    assert (ended.code, ended.out) == (0, "") and steps_on_disk(tmp_path / "run") == [2]
    assert "no held-out conversations" in ended.err and "dataset.test_ratio=0.0" in ended.err
    source = {"load_checkpoint": str(tmp_path / "run"), "eval_only": True}
    assert "dataset.test_ratio" in refused(text_flags(data, tmp_path / "new", **changes, **source))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["arch.causal=false"], "arch.causal=false"),
        (["arch.puzzle_emb_ndim=32"], "arch.puzzle_emb_ndim: conversations are not puzzles"),
        (["arch.supervise=cycle"], "arch.grad_cycles=last_cycle"),
        (["arch.halt_policy=learned"], "arch.halt_policy=learned needs arch.recursion=carry"),
        (["arch=trm", "arch.detach_between_steps=false"], "arch.detach_between_steps=false"),
        (["eval_save_outputs=[logits]"], "eval_save_outputs: no model returns logits. Choose from inputs, labels"),
        (["dataset.packin=true"], "dataset.packin: unknown key"),
    ],
)
def test_options_that_make_no_sense_on_text_are_refused(words, told):
    with pytest.raises(ConfigError) as refusal:
        check(InstructConfig, composed("cfg_pretrain_instruct", words))
    (problem,) = refusal.value.problems
    assert told in problem


@pytest.mark.parametrize("source", ["auto", "composition"])
def test_options_of_the_built_in_conversations_are_refused_where_another_source_ignores_them(source):
    words = [f"dataset.source={source}", "dataset.sample_size=9", "dataset.sample_tasks=[counting]"]
    data = composed("cfg_pretrain_instruct", words)
    with pytest.raises(ConfigError) as refusal:
        check(InstructConfig, data, {"dataset.sample_size", "dataset.sample_tasks", "lr"})
    assert [problem.partition(" ")[0] for problem in refusal.value.problems] == [
        "dataset.sample_size",
        "dataset.sample_tasks",
    ]
    assert check(InstructConfig, data, {"lr"}).dataset.sample_size == 9, "a recipe may hold them"
    own = composed("cfg_pretrain_instruct", ["dataset.source=sample", *words[1:]])
    assert check(InstructConfig, own, {"dataset.sample_size"}).dataset.sample_tasks == ["counting"]


def test_the_program_refuses_a_sample_size_that_its_corpus_ignores(data, tmp_path):
    assert "dataset.sample_size" in refused(text_flags(data, tmp_path / "run", dataset__sample_size=9))


def test_the_defaults_are_those_of_the_documents():
    config = check(InstructConfig, composed("cfg_pretrain_instruct", []))
    assert (config.dataset.seq_len, config.dataset.subset_size, config.global_batch_size) == (512, 1000, 32)
    assert (config.lr, config.lr_min_ratio, config.lr_warmup_steps) == (1e-4, 0.1, 100)
    assert (config.weight_decay, config.beta1, config.beta2) == (0.1, 0.9, 0.95)
    arch = config.arch.options
    assert (arch["hidden_size"], arch["H_cycles"], arch["L_cycles"], arch["halt_max_steps"]) == (512, 3, 6, 16)
    assert arch["causal"] is True and config.default_project_name() == "SlimOrca-ACT"


# --- the same run, split or stopped ---


def assert_same_course(one, other, rel=1e-4):
    """Both runs logged the same numbers, up to the order in which floats were added."""
    lines, others = logged(one), logged(other)
    assert len(lines) == len(others) > 10
    for line, expected in zip(lines, others, strict=True):
        assert line == pytest.approx(expected, rel=rel, abs=1e-5)


@pytest.mark.parametrize("mode", ["unrolled", "carry"])
def test_accumulation_and_passes_change_nothing(mode, data, tmp_path):
    whole = tmp_path / "whole"
    splits = {"halves": {"gradient_accumulation_steps": 2}, "quarters": {"dataset__tokens_per_pass": 72}}
    assert train_text(text_flags(data, whole, MODES[mode], lr=1e-3)).code == 0
    for name, changes in splits.items():
        assert train_text(text_flags(data, tmp_path / name, MODES[mode], lr=1e-3, **changes)).code == 0
        assert_same_course(tmp_path / name, whole)
        assert_same_end(tmp_path / name, whole, atol=2e-4)


def test_two_ranks_make_the_same_run_as_one(data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_text(text_flags(data, one, MODES["unrolled"], lr=1e-3)).code == 0
    words = text_flags(data, two, MODES["unrolled"], lr=1e-3)
    ended = end(start(words, tmp_path, *TORCHRUN, door="pretrain_instruct.py"))
    assert ended.code == 0, ended.err
    assert_same_course(two, one)
    assert len(ended.out.splitlines()) == 1 and ended.report["test"]["count"] == 18


def stopped_at(step: int, arguments: list[str]) -> str:
    """Run, and get SIGTERM after the first of two micro-batches of that step, which is then left; what was told."""
    task_class = PersistentTextTask if "arch.recursion=carry" in arguments else TextTask
    honest = task_class.train_step

    def with_signal(parts):
        first, second = parts
        yield first
        os.kill(os.getpid(), signal.SIGTERM)
        yield second

    def interrupted(task, item, number):
        if number == step:
            task.until_stopped = lambda parts: task_class.until_stopped(task, with_signal(parts))
        return honest(task, item, number)

    with mock.patch.object(task_class, "train_step", interrupted):
        ended = train_text(arguments)
    assert ended.code == 143 and ended.out == "", "a run that was stopped has no result"
    assert f"stopped after step {step - 1}; resume with: " in ended.err
    return ended.err


@pytest.mark.parametrize("mode", MODES)
def test_a_run_stopped_twice_ends_as_if_it_had_not_been(mode, data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"eval_interval": 1, "ema": True, "gradient_accumulation_steps": 2}
    assert train_text(text_flags(data, whole, MODES[mode], **options)).code == 0
    command = text_flags(data, broken, MODES[mode], **options)
    last = logged(whole)[-1]["step"]
    stops = (3, last // 2 + 2)
    for step in stops:
        stopped_at(step, [*command, *(["resume=true"] if step != stops[0] else [])])
    ended = train_text([*command, "resume=true"])
    assert ended.code == 0 and f"resumed from {broken / f'step_{stops[1] - 1}'}" in ended.err
    assert logged(broken) == logged(whole)
    assert_same_end(whole, broken)
    assert json.loads(ended.out)["test"]["count"] == 18


def test_a_longer_run_goes_on_where_a_shorter_one_ended(data, tmp_path):
    """Without a schedule that knows its end, the first steps of both are the same."""
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    constant, arch = {"lr_min_ratio": 1.0}, {"halt_policy": "fixed"}
    assert train_text(text_flags(data, whole, arch, **constant)).code == 0
    assert train_text(text_flags(data, longer, arch, **constant, max_steps=4)).code == 0
    assert train_text(text_flags(data, longer, arch, **constant, resume=True)).code == 0
    trained = [[line for line in logged(run) if "train/token_loss" in line] for run in (whole, longer)]
    assert trained[0] == trained[1]
    assert_same_end(whole, longer)


def test_a_checkpoint_is_evaluated_as_training_did(data, tmp_path):
    ended = train_text(text_flags(data, tmp_path / "run", max_steps=3))
    again = train_text(
        text_flags(data, tmp_path / "new", load_checkpoint=str(tmp_path / "run"), eval_only=True, global_batch_size=8)
    )
    report = json.loads(again.out)["test"]
    assert report == pytest.approx(json.loads(ended.out)["test"], rel=1e-5)
    assert not (tmp_path / "new").exists()


def test_resuming_with_another_recursion_is_refused(data, tmp_path):
    for saved, wanted, told in (("carry", "unrolled", "arch.recursion=carry"), ("unrolled", "carry", None)):
        run = tmp_path / saved
        assert train_text(text_flags(data, run, MODES[saved], max_steps=3)).code == 0
        words = text_flags(data, run, MODES[wanted], resume=True)
        if told:
            assert told in refused(words)
        else:
            assert train_text(words).code == 0, "a carry may begin anew at any step"
