"""A distillation from its command line: what it leaves behind, how it goes on, and what it refuses."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from engine.checkpoints.load import load_checkpoint
from src.distillation.run import job
from src.distillation.task import DistillTask
from tests.distillation.corpus_samples import preprocess_folder, write_jsonl, write_tokenizer
from tests.distillation.fake_server import serving
from tests.distillation.run_samples import (
    TRM,
    done,
    end_of,
    fails,
    history,
    measured,
    perplexity,
    train,
    train_as_is,
    write_world,
)
from tests.distillation.teacher_samples import write_llama
from tests.tiny import steps_on_disk


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


# --- a run ---


def test_a_run_leaves_its_files_and_learns(world):
    result = done(train(world, "learns", max_steps=12, eval_interval=6, save_interval=5, keep_last_n=2))
    folder = world / "learns"
    assert result["step"] == 12 and result["val"]["kl"] > 0
    assert math.isclose(result["val"]["perplexity"], math.exp(result["val"]["token_loss"]))
    lines = [line for line in measured(folder) if "train/ce" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["train/kd"] < lines[0]["train/kd"] - 0.5 and lines[-1]["train/ce"] < lines[0]["train/ce"] - 0.5
    mix = 0.1 * lines[0]["train/ce"] + 0.9 * lines[0]["train/kd"]
    assert math.isclose(lines[0]["train/loss"], mix) and 0 <= lines[0]["train/agreement"] <= 1
    assert {5, 10, 12} >= set(steps_on_disk(folder)) - {6} and 12 in steps_on_disk(folder)
    latest = folder / "checkpoint_latest.pt"
    assert latest.is_file() and load_checkpoint(latest).path == (folder / "step_12").resolve()
    assert "state" in torch.load(latest, weights_only=True)
    log = (folder / "train.log").read_text()
    assert "step 12: loss" in log and "evaluation at step 6: val/" in log and "a new run in mode direct" in log
    assert done(train_as_is("--config", str(folder / "config.yaml"), "--dry-run"))["steps"] == 12


@pytest.mark.parametrize("student", [{}, {"student": "trm_text", "student_overrides": TRM}])
def test_a_fresh_student_guesses_evenly(world, student):
    ended = train(world, f"first-{len(student)}", max_steps=1, **student)
    done(ended)
    (line,) = [line for line in measured(world / f"first-{len(student)}") if "train/ce" in line]
    assert abs(line["train/ce"] - math.log(259)) < 0.3 and "warning" not in ended.err


def test_a_student_that_is_sure_from_the_start_is_told_of(world, monkeypatch):
    monkeypatch.setattr("src.distillation.run.build.FIRST_LOGIT_STD", 8.0)
    ended = train(world, "sure", max_steps=1, student="trm_text", student_overrides=TRM)
    done(ended)
    assert "first cross-entropy" in ended.err and "5.557" in ended.err
    assert "the first cross-entropy is" in (world / "sure" / "train.log").read_text()


def test_micro_batches_change_nothing(world):
    one = {"physical_batch_size": 4, "gradient_accumulation_steps": 1}
    for name, changes in (("split", {"warmup_batches": 4}), ("whole", one | {"warmup_batches": 2})):
        done(train(world, name, max_steps=3, **changes))
    split, whole = end_of(world / "split")[0], end_of(world / "whole")[0]
    for name in split:
        torch.testing.assert_close(split[name], whole[name], rtol=0, atol=2e-5, msg=name)


def test_another_run_that_is_to_be_replaced_is_put_aside_and_can_be_gone_on_with(world):
    done(train(world, "twice", max_steps=3))
    ended = train(world, "twice", "--pretrain-ce-only", max_steps=2)
    done(ended)
    folder = world / "twice"
    assert str(folder / "former" / "1") in ended.err
    assert steps_on_disk(folder) == [2] and steps_on_disk(folder / "former" / "1") == [3]
    done(train(world, "twice", "--replace", "--resume-from", str(folder / "former" / "1"), max_steps=4))
    assert steps_on_disk(folder) == [4] and steps_on_disk(folder / "former" / "2") == [2]
    assert [(line["step"], line["from_mode"], line["to_mode"]) for line in history(folder)] == [
        (0, None, "direct"),
        (0, None, "ce"),
        (3, "direct", "direct"),
    ]


# --- going on ---

MODES = {
    "direct": {},
    "ce": {"pretrain_ce_only": True},
    "cached": {"teacher_mode": "cached"},
    "muon": {"optimizer_type": "muon_hybrid"},
    "sampled": {"teacher_kind": "sampled", "divergence": "forward_kl"},
    "trm": {"student": "trm_text", "student_overrides": TRM.replace("fixed", "sampled")},
}


@pytest.fixture(scope="module")
def cache(world) -> Path:
    """The teacher's answers to every row, written by a run on the way."""
    done(train(world, "warm", max_steps=15, cache_logits=True, eval_interval=15, eval_perplexity_samples=99))
    return world / "cache"


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_run_ends_as_the_whole_one_does(world, request, mode):
    if mode == "cached":
        request.getfixturevalue("cache")
    file = world / "saddle.yaml"  # so impatient that the controller acts within a few steps
    file.write_text("saddle_escape: {patience_steps: 3, loss_improvement_threshold: 0.9, cooldown_steps: 1}\n")
    more = ("--config", str(file), "--enable-saddle-interventions")
    options = {"max_steps": 17, "save_interval": 4, "keep_last_n": 9, "eval_interval": 5} | MODES[mode]  # 15 an epoch
    done(train(world, f"{mode}-whole", *more, **options))
    start = world / f"{mode}-whole" / "step_8"
    done(train(world, f"{mode}-rest", *more, "--resume-from", str(start), **options))
    (weights, trainer), (other_weights, other_trainer) = (
        end_of(world / f"{mode}-{part}") for part in ("whole", "rest")
    )
    torch.testing.assert_close(weights, other_weights, rtol=0, atol=0)
    torch.testing.assert_close(trainer, other_trainer, rtol=0, atol=0)
    whole, rest = measured(world / f"{mode}-whole"), measured(world / f"{mode}-rest")
    assert [line for line in whole if line["step"] > 8] == rest and len(rest) >= 9
    assert max(line.get("train/lr_factor", 1) for line in whole) > 1


def test_a_signal_ends_in_a_checkpoint_that_is_gone_on_with(world, monkeypatch):
    done(train(world, "unbroken", max_steps=5))
    with monkeypatch.context() as patch:
        patch.setattr(DistillTask, "commit", lambda task: os.kill(os.getpid(), signal.SIGTERM))
        ended = train(world, "broken", max_steps=5)
    assert (ended.code, ended.out) == (143, "") and (world / "broken" / "step_1").is_dir()
    assert "resume with: python -m src.distillation.scripts.train" in ended.err
    done(train(world, "broken", "--resume-from", "latest", max_steps=5))
    torch.testing.assert_close(end_of(world / "broken"), end_of(world / "unbroken"), rtol=0, atol=0)
    assert measured(world / "broken") == measured(world / "unbroken")


def test_text_first_then_the_teacher_is_one_run_with_a_written_change(world):
    done(train(world, "both", "--pretrain-ce-only", max_steps=3))
    folder = world / "both"
    assert "train/kd" not in measured(folder)[-1]
    latest = folder / "checkpoint_latest.pt"
    ended = train(world, "both", "--resume-from", str(latest), max_steps=5, weight_decay=0.5, eval_interval=2)
    done(ended)
    assert "mode ce -> direct" in ended.err
    first, second = history(folder)
    assert (first["from_mode"], first["to_mode"], first["teacher_fingerprint"]) == (None, "ce", None)
    assert (second["step"], second["from_mode"], second["to_mode"]) == (3, "ce", "direct")
    assert second["changes"]["weight_decay"] == [0.01, 0.5] and "output_dir" not in second["changes"]
    assert second["data_fingerprint"] == first["data_fingerprint"] and second["teacher_fingerprint"]
    assert all("train/kd" in line for line in measured(folder) if line["step"] > 3 and "train/ce" in line)
    groups = end_of(folder)[1]["optimizers"][0]["param_groups"]
    assert 0.5 in [group["weight_decay"] for group in groups] and 0.01 not in [g["weight_decay"] for g in groups]
    assert [line["step"] for line in measured(folder) if "val/kl" in line] == [4, 5]


def test_going_on_refuses_another_student_and_reads_more_text_from_its_beginning(world, tmp_path):
    done(train(world, "fixed", max_steps=2))
    start = ("--resume-from", str(world / "fixed"))
    told = fails(train(world, "else", *start, optimizer_type="adam_atan2", seed=1, gradient_accumulation_steps=3))
    assert "optimizer_type='adam_atan2'" in told
    assert "seed=1" in told and "physical_batch_size" in told
    assert not list((world / "else").glob("step_*"))

    shutil.copytree(world / "tokenizer", tmp_path / "tokenizer")
    write_jsonl(tmp_path / "raw" / "more.jsonl", [{"text": f"{n} more " * 9} for n in range(60)])
    preprocess_folder(tmp_path, "--val-fraction", "0.2")
    done(train(world, "else", *start, max_steps=3, train_data_path=tmp_path / "packed", val_data_path="none"))
    (line,) = history(world / "else")
    assert line["data_fingerprint"] != line["former_data_fingerprint"] and line["step"] == 2
    state = end_of(world / "else")[1]["state"]
    assert (state["step"], state["iteration"], state["batches_done"]) == (3, 1, 1)


def test_a_server_teaches_as_the_model_itself_does(world):
    from transformers import LlamaForCausalLM

    done(train(world, "beside", max_steps=2, eval_interval=2))
    model = LlamaForCausalLM.from_pretrained(world / "teacher").eval()
    with serving(model, max_logprobs=16) as server:
        network = {"teacher_mode": "network", "teacher_url": server.url, "teacher_model": "none", "max_steps": 2}
        done(train(world, "afar", eval_interval=2, **network))
    for near, far in zip(measured(world / "beside"), measured(world / "afar"), strict=True):
        assert near.keys() == far.keys()
        assert all(math.isclose(near[key], far[key], rel_tol=1e-3, abs_tol=1e-3) for key in near if key != "train/lr")


# --- what is refused ---


def test_a_corpus_of_another_tokenizer_or_length_is_refused(world, tmp_path):
    other = write_tokenizer(tmp_path / "other", bos_token="<s>", eos_token="<|eot|>")
    assert "SHA-256" in fails(train(world, "no", tokenizer_name=other))
    told = fails(train(world, "no", max_seq_length=128))
    assert "max_seq_length" in told and "preprocess" in told


def test_a_teacher_of_fewer_ids_is_refused_and_an_unknown_one_named(world, tmp_path):
    small = write_llama(tmp_path / "small", vocab_size=258)
    assert "258 ids" in fails(train(world, "no", teacher_model=small))
    assert str(tmp_path / "nowhere") in fails(train(world, "no", teacher_model=tmp_path / "nowhere"))
    assert not (world / "no").exists() or not list((world / "no").glob("step_*"))


def test_a_temperature_that_the_cache_does_not_hold_is_refused(world, cache):
    told = fails(train(world, "no", teacher_mode="cached", teacher_temperature=2))
    assert "temperature" in told and "cache_teacher_logits.py" in told


def test_a_cache_that_lacks_rows_to_train_on_is_refused_at_the_start(world):
    partial = {"cache_dir": world / "partial", "max_steps": 1}
    done(train(world, "part", cache_logits=True, **partial))
    told = fails(train(world, "part-cached", teacher_mode="cached", **partial))
    assert "does not hold row" in told and "cache_teacher_logits.py" in told
    assert not (world / "part-cached").exists()
    ended = train(world, "part-asked", teacher_mode="cached", on_missing="direct", **partial)
    done(ended)
    assert "cache: 4 of 57 rows of train, 0 of " in ended.err


def test_a_cache_of_training_rows_alone_judges_held_out_rows_without_the_teacher(world):
    done(train(world, "half", max_steps=15, cache_logits=True, cache_dir=world / "half-cache"))
    cached = {"teacher_mode": "cached", "cache_dir": world / "half-cache", "max_steps": 2, "eval_interval": 1}
    ended = train(world, "half-cached", **cached)
    result = done(ended)
    assert "perplexity" in result["val"] and "kl" not in result["val"]
    assert ended.err.count("held-out rows are evaluated without the teacher") == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher_mode": "network", "teacher_temperature": 2}, "a server tells of temperature 1 only"),
        ({"teacher_mode": "cached", "cache_logits": True}, "cache_logits=true is for teacher_mode=direct or network"),
        ({"teacher_mode": "cached", "cache_dir": "nowhere"}, "nowhere"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(world, changes, told):
    assert told in fails(train(world, "no", **changes))


def test_no_corpus_and_too_small_a_corpus_are_named(world, tmp_path):
    told = fails(train(world, "no", train_data_path=tmp_path))
    assert f"manifest.json in {tmp_path}" in told and "data/preprocess_to_parquet.py" in told
    assert "57 rows" in fails(train(world, "no", gradient_accumulation_steps=99))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"student": "trm_txt"}, "did you mean trm_text?"),
        ({"student": "trm"}, "recursion"),
        (
            {"student_overrides": "hiden_size=32"},
            "student_overrides.hiden_size: unknown key, did you mean hidden_size?",
        ),
        ({"model_variant": "2B"}, "Unknown RetNet variant '2B'"),
        ({"student": "trm_text", "gradient_checkpointing": True}, "gradient_checkpointing=true is for student=retnet"),
        ({"resume_from": "nowhere/checkpoint_latest.pt"}, "There is no checkpoint at nowhere/checkpoint_latest.pt"),
    ],
)
def test_what_cannot_be_built_is_refused(world, changes, told):
    assert told in fails(train(world, "no", **changes))


def test_attention_is_that_of_the_compiled_student(world, monkeypatch):
    assert "attention=flex" in fails(train(world, "runs/plain", "--pretrain-ce-only", attention="flex"))
    asked = []
    monkeypatch.setattr(job, "compile_networks", lambda head, runtime, attention, say: asked.append(attention))
    for attention in ("auto", "sdpa", "flex"):
        run = train(world, f"runs/{attention}", "--pretrain-ce-only", attention=attention, compile="true", max_steps=1)
        assert run.code == 0, run.err
    assert asked == ["auto", "sdpa", "flex"]


def test_two_runs_do_not_write_into_one_folder(world):
    from dataset.files.disk import exclusive_lock

    with exclusive_lock(world / "busy"):
        assert "Another run is writing into" in fails(train(world, "busy"))
    done(train(world, "busy", max_steps=1))


# --- judging ---


def test_perplexity_is_that_of_the_run_and_the_teacher_is_asked_when_wanted(world):
    result = done(train(world, "judged", max_steps=2, eval_interval=2, eval_perplexity_samples=99))
    report = done(perplexity(world, "judged"))
    assert report["perplexity"] == result["val"]["perplexity"] and report["step"] == 2 and "kl" not in report
    taught = done(perplexity(world, "judged", "--with-teacher", "--rows", "2"))
    assert taught["kl"] > 0 and 0 <= taught["agreement"] <= 1 and taught["rows"] == 2
    fresh = perplexity(world, "nothing-yet", "--split", "train")
    assert done(fresh)["checkpoint"] is None and "a fresh student" in fresh.err


def test_a_cache_is_not_asked_about_the_rows_of_another_corpus(world, tmp_path):
    shutil.copytree(world / "tokenizer", tmp_path / "tokenizer")
    write_jsonl(tmp_path / "raw" / "other.jsonl", [{"text": f"{n} other " * 9} for n in range(60)])
    preprocess_folder(tmp_path, "--val-fraction", "0.2")
    elsewhere = {"val_data_path": tmp_path / "packed", "cache_logits": True, "cache_dir": tmp_path / "cache"}
    told = fails(perplexity(world, "nothing-yet", "--with-teacher", **elsewhere))
    assert "teacher_mode=direct" in told and "--with-teacher" in told
    assert not (tmp_path / "cache").exists()


def test_needles_are_looked_for_when_asked(world):
    result = done(train(world, "needle", "--pretrain-ce-only", max_steps=1, eval_interval=1, eval_niah=True))
    assert 0 <= result["NeedleEvaluator"]["mean"] <= 1 and "24/0.5" in result["NeedleEvaluator"]
    assert json.loads((world / "needle" / "metrics.jsonl").read_text().splitlines()[-1])["NeedleEvaluator/mean"] >= 0
