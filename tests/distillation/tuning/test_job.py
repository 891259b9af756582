"""Tuning a teacher: it learns, the files that come of it say the same as the model, and what is configured is done."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoints.load import load_checkpoint
from engine.train.opening import open_run
from src.distillation.config import TeacherOptions
from src.distillation.corpus.manifest import load_manifest
from src.distillation.teachers.causal_lm import adapter_folder, load_causal_lm
from src.distillation.teachers.direct import open_direct_teacher
from src.distillation.tuning.job import TuneTeacherJob
from tests.distillation.teacher_samples import SIZES, finetune, options, write_corpus, write_llama

IDS = torch.randint(97, 105, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus that no test changes."""
    root = tmp_path_factory.mktemp("tuning")
    write_llama(root / "teacher", initializer_range=0.1)
    write_corpus(root)
    return root


@pytest.fixture(scope="module")
def tuned(shared: Path) -> tuple[Path, dict[str, Any]]:
    result = finetune(options(shared, output_dir=str(shared / "tuned"), max_steps=60, eval_interval=20))
    assert result is not None
    return shared / "tuned", result


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def logged(folder: Path, key: str) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def test_adapter_lowers_held_out_perplexity(tuned: tuple[Path, dict[str, Any]]) -> None:
    _, result = tuned
    assert result["improvement"] >= 0.10
    assert result["tuned"]["perplexity"] < 0.9 * result["base"]["perplexity"]
    assert result["steps"] == 60


def test_report_is_of_the_model_that_is_on_disk(shared: Path, tuned: tuple[Path, dict[str, Any]]) -> None:
    folder, result = tuned
    again = options(shared, teacher_model=str(folder), output_dir=str(shared / "again"), max_steps=1)
    second = finetune(again)
    assert second is not None
    assert second["base"]["loss"] == pytest.approx(result["tuned"]["loss"], rel=1e-5)


def test_merged_model_and_adapter_say_the_same(shared: Path, tuned: tuple[Path, dict[str, Any]]) -> None:
    from peft import PeftModel

    folder, _ = tuned
    base = load_causal_lm(str(shared / "teacher"), dtype=torch.float32)
    before = logits(base)
    unmerged = logits(PeftModel.from_pretrained(base, str(adapter_folder(str(folder)))))
    merged = logits(load_causal_lm(str(folder), dtype=torch.float32))
    through_path = logits(load_causal_lm(str(shared / "teacher"), dtype=torch.float32, adapter_path=str(folder)))
    assert (merged - unmerged).abs().max() < 1e-5
    assert (through_path - merged).abs().max() < 1e-5
    assert (merged - before).abs().max() > 0.1


@pytest.mark.parametrize("place", ["the same folder", "the folder below", "a copy of both", "an older merged model"])
def test_adapter_is_not_merged_a_second_time(
    shared: Path, tuned: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    model, adapter = tuned[0], tuned[0]
    if place == "the folder below":
        adapter = model / "adapter"
    elif place == "a copy of both":  # nothing but the model's configuration tells of it
        adapter = Path(shutil.copytree(model / "adapter", tmp_path / "adapter"))
        model = Path(shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("adapter", "step_*")))
    elif place == "an older merged model":
        model = adapter = Path(shutil.copytree(model, tmp_path / "model"))
        facts = json.loads((model / "config.json").read_text())
        del facts["merged_adapters"]
        (model / "config.json").write_text(json.dumps(facts))
    asked = TeacherOptions(teacher_model=str(model), teacher_adapter_path=str(adapter), teacher_topk=4)
    corpus = load_manifest(shared / "packed")
    twice = open_direct_teacher(asked, corpus.tokenizer)
    assert "applied once" in capsys.readouterr().err
    once = open_direct_teacher(asked.model_copy(update={"teacher_adapter_path": None}), corpus.tokenizer)
    assert torch.equal(logits(twice.model), logits(once.model))
    assert twice.facts.fingerprint == once.facts.fingerprint


def test_another_adapter_is_merged_into_a_merged_model(
    shared: Path, tuned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    (folder, _), again = tuned, tmp_path / "again"
    finetune(options(shared, teacher_model=str(folder), output_dir=str(again), max_steps=1))
    both = load_causal_lm(str(folder), dtype=torch.float32, adapter_path=str(again / "adapter"))
    merged = load_causal_lm(str(again), dtype=torch.float32)
    assert torch.allclose(logits(both), logits(merged), atol=1e-5)
    assert len(merged.config.merged_adapters) == 2


def test_folder_is_a_model_to_everybody(tuned: tuple[Path, dict[str, Any]]) -> None:
    """What transformers alone makes of it: an adapter beside the weights would be applied once more."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = tuned
    ours = logits(load_causal_lm(str(folder), dtype=torch.float32))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), ours)
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == [97, 98, 99]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert {file.name for file in (folder / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_checkpoints_hold_the_trained_weights_alone(tuned: tuple[Path, dict[str, Any]]) -> None:
    folder, result = tuned
    weights = load_file(folder / "step_60" / "model.safetensors")
    assert all("lora_" in name for name in weights)
    assert sum(value.numel() for value in weights.values()) == result["trained_parameters"]


def test_config_is_applied(shared: Path, tmp_path: Path) -> None:
    config = options(
        shared, output_dir=str(tmp_path), lora_rank=3, lora_alpha=9, lora_dropout=0.25, target_modules=["q_proj", "up_proj"],
        learning_rate=2e-3, weight_decay=0.07, beta1=0.8, beta2=0.9, warmup_steps=4, max_grad_norm=0.3, seed=5,
        gradient_checkpointing=True,
    )  # fmt: skip
    with ExitStack() as stack:
        run, _ = open_run(TuneTeacherJob(config), stack)
    trained = {name: p for name, p in run.task.module.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == {"q_proj", "up_proj"}
    assert all(3 in p.shape for p in trained.values())
    layer = run.task.module.get_submodule("model.base_model.model.model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == 3.0
    assert layer.lora_dropout["default"].p == 0.25
    assert run.task.module.causal.model.layers[0].gradient_checkpointing
    optimizer = run.optimizers.network
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(trained.values())
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    assert max(group["weight_decay"] for group in optimizer.param_groups) == 0.07
    assert run.plan.grad_clip == 0.3
    assert run.optimizers.schedule.at(2, 2e-3) == pytest.approx(1e-3)
    assert run.optimizers.schedule.at(run.plan.total_steps, 2e-3) == pytest.approx(config.min_lr)


def test_adam_atan2_is_the_other_optimizer(shared: Path, tmp_path: Path) -> None:
    config = options(shared, output_dir=str(tmp_path), optimizer_type="adam_atan2")
    with ExitStack() as stack:
        run, _ = open_run(TuneTeacherJob(config), stack)
    assert type(run.optimizers.network).__name__ == "AdamATan2"


def test_resume_equals_a_run_that_was_not_interrupted(shared: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"max_steps": 7, "eval_interval": 3, "save_interval": 2, "keep_last_n": None, "lora_dropout": 0.1}
    expected = finetune(options(shared, output_dir=str(whole), **settings))
    finetune(options(shared, output_dir=str(cut), **settings))
    for step in (5, 6, 7):
        (cut / f"step_{step}").rename(tmp_path / str(step)) if (cut / f"step_{step}").exists() else None
    found = finetune(options(shared, output_dir=str(cut), resume_from=str(cut / "checkpoint-4"), **settings))

    assert found == expected | {name: found[name] for name in ("adapter", "model")}
    for key in ("train/loss", "val/loss"):
        assert logged(cut, key) == logged(whole, key)
    ours, theirs = load_checkpoint(cut / "step_7").weights, load_checkpoint(whole / "step_7").weights
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resume_from_a_run_folder_takes_its_last_checkpoint(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(options(shared, output_dir=str(tmp_path), max_steps=4, eval_interval=2))
    finetune(options(shared, output_dir=str(tmp_path), max_steps=6, eval_interval=2, resume_from=str(tmp_path)))
    assert f"resumed from {tmp_path / 'step_4'}" in capsys.readouterr().err
    assert (tmp_path / "step_6").is_dir()


def test_resume_with_another_rank_or_corpus_is_refused(shared: Path, tmp_path: Path) -> None:
    finetune(options(shared, output_dir=str(tmp_path / "a"), max_steps=1))
    resumed = {"output_dir": str(tmp_path / "a"), "resume_from": str(tmp_path / "a" / "step_1")}
    with pytest.raises(ValueError, match="lora_rank"):
        finetune(options(shared, **resumed, lora_rank=4))
    other = write_corpus(tmp_path / "other", count=60, seed=1)
    with pytest.raises(ValueError, match="corpus"):
        finetune(options(shared, **resumed, data_path=str(other)))


def test_folder_with_checkpoints_is_not_begun_in_again(shared: Path, tmp_path: Path) -> None:
    finetune(options(shared, output_dir=str(tmp_path), max_steps=1))
    with pytest.raises(ValueError, match=f"--resume-from {tmp_path}"):
        finetune(options(shared, output_dir=str(tmp_path), max_steps=1))


def test_resume_into_a_folder_of_its_own(shared: Path, tmp_path: Path) -> None:
    finetune(options(shared, output_dir=str(tmp_path / "a"), max_steps=2))
    finetune(options(shared, output_dir=str(tmp_path / "b"), max_steps=1))
    resumed = {"resume_from": str(tmp_path / "a"), "max_steps": 4}
    with pytest.raises(ValueError, match="--resume-from"):
        finetune(options(shared, output_dir=str(tmp_path / "b"), **resumed))
    result = finetune(options(shared, output_dir=str(tmp_path / "c"), **resumed))
    assert result is not None
    assert result["steps"] == 4
    assert list(logged(tmp_path / "c", "train/loss")) == [3, 4]


def test_it_ends_when_the_loss_no_longer_falls(shared: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-12, "min_lr": 0.0, "patience": 2, "eval_interval": 2, "max_steps": 40}
    result = finetune(options(shared, output_dir=str(tmp_path / "a"), **settings))
    assert result is not None
    assert (result["ended_early"], result["steps"]) == (True, 4)
    patient = finetune(options(shared, output_dir=str(tmp_path / "b"), **settings | {"patience": None, "max_steps": 6}))
    assert patient is not None
    assert (patient["ended_early"], patient["steps"]) == (False, 6)


def test_best_weights_are_written_not_the_last(shared: Path, tmp_path: Path) -> None:
    """A learning rate that first helps and then ruins: what is saved is what scored best."""
    settings = {"max_steps": 12, "eval_interval": 3, "patience": None, "learning_rate": 0.3, "min_lr": 0.3}
    result = finetune(options(shared, output_dir=str(tmp_path), warmup_steps=12, **settings))
    assert result is not None
    losses = logged(tmp_path, "val/loss")
    best = min(losses, key=lambda step: losses[step])
    assert result["best_step"] == best
    assert result["tuned"]["loss"] == pytest.approx(losses[best], rel=1e-4)


def test_teacher_from_nothing(shared: Path, tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if not key.endswith(("_id", "vocab_size"))}
    (tmp_path / "small.json").write_text(json.dumps(sizes | {"model_type": "llama"}))
    result = finetune(
        options(
            shared,
            teacher_model=None,
            init_config=str(tmp_path / "small.json"),
            method="full",
            output_dir=str(tmp_path / "made"),
            max_steps=40,
            eval_interval=0,
        )  # fmt: skip
    )
    assert result is not None
    assert result["base"]["loss"] == pytest.approx(5.56, abs=0.1)  # ln 259
    assert result["improvement"] > 0.5
    assert result["adapter"] is None
    assert not (tmp_path / "made" / "adapter").exists()
    assert logits(load_causal_lm(result["model"], dtype=torch.float32)).shape == (2, 20, 259)


def test_whole_model_may_be_tuned(shared: Path, tmp_path: Path) -> None:
    result = finetune(options(shared, method="full", output_dir=str(tmp_path), max_steps=10, eval_interval=0))
    assert result is not None
    assert result["improvement"] > 0.1
    before = load_file(shared / "teacher" / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_without_merging_only_the_adapter_is_written(shared: Path, tmp_path: Path) -> None:
    result = finetune(options(shared, output_dir=str(tmp_path), max_steps=1, save_merged=False))
    assert result is not None
    assert result["model"] is None
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_gradient_checkpointing_and_bfloat16_train_alike(shared: Path, tmp_path: Path) -> None:
    losses = {}
    for name, changes in {
        "plain": {},
        "again": {"gradient_checkpointing": True},
        "bf16": {"dtype": "bfloat16"},
    }.items():
        finetune(options(shared, output_dir=str(tmp_path / name), max_steps=3, **changes))
        losses[name] = [*logged(tmp_path / name, "train/loss").values()]
    assert losses["again"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=0.02)
    assert losses["bf16"] != losses["plain"]
