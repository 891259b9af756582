"""Chat from a file of conversations to an answer: build, train (dense and recursive), evaluate, resume, generate."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.config.compose import composed
from engine.config.registry import load_model_class
from tests.chat_runs import chat_flags, write_chat_data
from tests.tiny import ROOT, TORCHRUN, end, logged, pretrain, run_door, start

RECURSIVE = {"H_cycles": 2, "L_cycles": 2, "halt_max_steps": 3, "halt_mean_steps": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_chat_data(tmp_path_factory.mktemp("chat") / "pets-dataset")


def trained(data, run, arch=None, **changes):
    ended = pretrain(chat_flags(data, run, arch, **changes))
    assert ended.code == 0, ended.err
    return ended


def weights(run):
    (step,) = [path for path in run.glob("step_*") if path.name == (run / "latest").resolve().name]
    return load_file(step / "model.safetensors")


@pytest.mark.parametrize("arch", [{}, RECURSIVE], ids=["dense", "recursive"])
def test_chat_models_train_evaluate_and_answer(data, tmp_path, arch):
    ended = trained(data, tmp_path / "run", arch, ema=False, epochs=12, eval_interval=12)
    (report,) = json.loads(ended.out.splitlines()[-1]).values()
    deepest = arch.get("halt_max_steps", 1)
    assert report["steps"] == deepest and f"depth_{deepest}/token_loss" in report
    assert report["token_loss"] < 2.5  # a fresh model has 5.8
    answer = run_door("generate.py", "--checkpoint", tmp_path / "run", "--prompt", "My name is Ada", "--temperature", 0)
    assert answer.code == 0 and answer.out.endswith("\n") and len(answer.out) > 1


def test_a_short_run_is_evaluated_with_weights_that_have_learnt(data, tmp_path):
    """cfg_chat averages the weights by default; the average may not be that of the random start."""
    averaged = trained(data, tmp_path / "averaged", epochs=12, eval_interval=12)
    plain = trained(data, tmp_path / "plain", epochs=12, eval_interval=12, ema=False)
    (with_average,), (without,) = (json.loads(run.out.splitlines()[-1]).values() for run in (averaged, plain))
    assert with_average["token_loss"] == pytest.approx(without["token_loss"], abs=0.3)
    assert "ema_rate" not in averaged.err


def test_the_run_has_the_names_of_the_guide(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in chat_flags(data, tmp_path) if not word.startswith("checkpoint_path")]
    assert pretrain([*words, "max_steps=1"]).code == 0
    (run,) = (tmp_path / "checkpoints" / "Pets-dataset-ACT-torch").iterdir()
    assert re.fullmatch(r"trm_chat-[a-z]+-[a-z]+", run.name) and (run / "latest" / "model.safetensors").exists()


def test_defaults_fit_few_conversations_and_few_epochs(data, tmp_path):
    """As typed by somebody who gives the data and the number of epochs alone."""
    given = [
        word for word in chat_flags(data, tmp_path / "run", epochs=4) if not word.startswith(("lr", "eval_i", "glo"))
    ]
    ended = pretrain([*given, "global_batch_size=64"])
    assert ended.code == 0, ended.err
    assert re.search("global_batch_size=64.* 42$", ended.err, re.MULTILINE)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "global_batch_size: 42" in config and "lr_warmup_steps: 0" in config
    assert config == (tmp_path / "run" / "latest" / "config.yaml").read_text()
    assert "lr_warmup_steps=1000" in ended.err and json.loads(ended.out)["test"]["count"] > 0


def test_advice_names_options_that_chat_has(data, tmp_path):
    trained(data, tmp_path / "run", max_steps=1)
    whole = write_chat_data(tmp_path / "whole", "--tokenizer", str(data / "tokenizer"), "--train-split", "1")
    ended = pretrain(chat_flags(whole, tmp_path / "no", eval_only=True, load_checkpoint=str(tmp_path / "run")))
    assert ended.code == 1 and "--train-split" in ended.err and "dataset." not in ended.err.splitlines()[-1]
    ended = pretrain(chat_flags(data, tmp_path / "no", gradient_accumulation_steps=64, global_batch_size=64))
    assert ended.code == 1 and "data_paths" in ended.err and "subset_size" not in ended.err


def test_a_default_batch_can_be_shared_by_any_number_of_passes(data, tmp_path):
    words = [word for word in chat_flags(data, tmp_path / "run", max_steps=1) if not word.startswith("global_batch")]
    ended = pretrain([*words, "gradient_accumulation_steps=5"])
    assert (
        ended.code == 0
        and "global_batch_size=32" in ended.err
        and "global_batch_size: 30" in (tmp_path / "run" / "config.yaml").read_text()
    ), ended.err


def test_a_warm_up_that_was_given_is_kept(data, tmp_path):
    words = [word for word in chat_flags(data, tmp_path / "run", max_steps=3) if not word.startswith("lr_w")]
    ended = pretrain([*words, "lr_warmup_steps=7"])
    assert ended.code == 0 and "warning: lr_warmup_steps=7" in ended.err


def test_accumulation_changes_no_update(data, tmp_path):
    for name, parts in (("whole", 1), ("halves", 2), ("quarters", 4)):
        trained(data, tmp_path / name, max_steps=3, gradient_accumulation_steps=parts, packing=False)
    whole, *others = (weights(tmp_path / name) for name in ("whole", "halves", "quarters"))
    for other in others:
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value, atol=1e-5, rtol=1e-4)


def test_two_ranks_make_the_update_of_one(data, tmp_path):
    trained(data, tmp_path / "one", max_steps=3)
    ended = end(start(chat_flags(data, tmp_path / "two", max_steps=3), tmp_path, *TORCHRUN))
    assert ended.code == 0, ended.err
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_ranks_equal_two_micro_batches_in_bfloat16_too(data, tmp_path):
    """Gradients are summed in float32; a batch in one piece has other products rounded."""
    ways = {"one": ([], 1), "halves": ([], 2), "two": (TORCHRUN, 1)}
    for name, (before, parts) in ways.items():
        arch = RECURSIVE | {"forward_dtype": "bfloat16"}
        words = chat_flags(data, tmp_path / name, arch, max_steps=4, gradient_accumulation_steps=parts, packing=False)
        ended = end(start(words, tmp_path, *before, OMP_NUM_THREADS="1"))
        assert ended.code == 0, ended.err
    one, halves, two = (logged(tmp_path / name) for name in ways)
    of_two = weights(tmp_path / "two")
    for key, value in weights(tmp_path / "halves").items():
        torch.testing.assert_close(of_two[key], value, rtol=0, atol=1e-6, msg=key)
    losses = [[line["train/token_loss"] for line in run if "train/token_loss" in line] for run in (one, halves, two)]
    assert losses[2] == pytest.approx(losses[1], rel=1e-6) and losses[2] == pytest.approx(losses[0], rel=5e-3)


def test_the_sizes_in_the_documents_are_those_of_the_models():
    rows = re.findall(r"^\| ([\d,]+) " + r"\| ([\d,]+) " * 5 + r"\|$", (ROOT / "docs" / "chat.md").read_text(), re.M)
    assert len(rows) == 4
    for row in rows:
        width, layers, heads, trunk, tables, whole = (int(cell.replace(",", "")) for cell in row)
        words = [f"arch.hidden_size={width}", f"arch.L_layers={layers}", f"arch.num_heads={heads}"]
        options = composed("cfg_chat", words)["arch"] | {"seq_len": 2048, "vocab_size": 50266}
        with torch.device("meta"):
            model = load_model_class(options.pop("name"))({key: options[key] for key in options.keys() - {"loss"}})
        sizes = {name: value.numel() for name, value in model.named_parameters()}
        assert sum(sizes.values()) == whole
        assert sum(size for name, size in sizes.items() if "embed" in name or "lm_head" in name) == tables
        assert sum(size for name, size in sizes.items() if "_level" in name) == trunk


def test_a_resumed_run_ends_like_an_uninterrupted_one(data, tmp_path):
    trained(data, tmp_path / "whole", checkpoint_interval=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts", symlinks=True)
    for step in (tmp_path / "parts").glob("step_*"):
        if step.name != "step_4":
            shutil.rmtree(step)
    trained(data, tmp_path / "parts", checkpoint_interval=4, resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


def test_rows_can_be_shorter_than_those_of_the_data(data, tmp_path):
    ended = trained(data, tmp_path / "run", {"seq_len": 24}, max_steps=2)
    assert "truncated" in ended.err
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "seq_len: 24" in config
    said = run_door("generate.py", "--checkpoint", tmp_path / "run", "--prompt", "word " * 40)
    assert said.code == 1 and "window of 24" in said.err


def test_several_data_sets_are_mixed_if_they_share_a_tokenizer(data, tmp_path):
    other = write_chat_data(tmp_path / "other", "--tokenizer", str(data / "tokenizer"), "--seed", "7")
    trained(data, tmp_path / "run", data_paths=[str(data), str(other)], max_steps=2)
    stranger = write_chat_data(tmp_path / "stranger", "--tokenizer", "train:300")
    ended = pretrain(chat_flags(data, tmp_path / "no", data_paths=[str(data), str(stranger)]))
    assert ended.code == 1 and "tokenizers" in ended.err


def test_evaluation_alone(data, tmp_path):
    first = trained(data, tmp_path / "run", ema=False)
    again = trained(data, tmp_path / "eval", ema=False, eval_only=True, load_checkpoint=str(tmp_path / "run"))
    expected, found = (json.loads(ended.out.splitlines()[-1]) for ended in (first, again))
    assert found["test"]["token_loss"] == pytest.approx(expected["test"]["token_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("arch", "changes", "told"),
    [
        ({"causal": False}, {}, "arch.causal=false"),
        ({"hiden_size": 3}, {}, "hidden_size"),
        ({}, {"data_paths": ["data/nowhere"]}, "data/nowhere"),
        ({}, {"dataset_typo": 1}, "dataset_typo"),
    ],
)
def test_faults_are_told_in_words(data, tmp_path, arch, changes, told):
    ended = pretrain(chat_flags(data, tmp_path / "run", arch, **changes))
    assert ended.code == 1 and re.search(told, ended.err) and "Traceback" not in ended.err


def test_generation_is_reproducible_and_takes_the_newest_of_several(data, tmp_path):
    trained(data, tmp_path / "runs" / "a", epochs=4, ema=False, eval_interval=4)
    trained(data, tmp_path / "runs" / "b", max_steps=1)
    ask = (
        "--checkpoint",
        tmp_path / "runs" / "a",
        "--prompt",
        "My name is Bo",
        "--temperature",
        2,
        "--max-new-tokens",
        12,
    )
    texts = [run_door("generate.py", *ask, "--seed", seed).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    newest = run_door(
        "generate.py", "--checkpoint", tmp_path / "runs" / "*", "--prompt", "Hello", "--max-new-tokens", 2
    )
    assert newest.code == 0 and "taking the newest" in newest.err and "/b/" in newest.err


def test_the_window_drops_the_oldest_turns_and_says_so(data, tmp_path):
    trained(data, tmp_path / "run", max_steps=1)
    lines = "".join(f"My name is Ada and I have {number} cats.\n" for number in range(6)) + "/stats\n"
    ended = run_door(
        "generate.py", "--checkpoint", tmp_path / "run", "--interactive", "--max-new-tokens", 8, stdin=lines
    )
    assert ended.code == 0 and "oldest 2 turns" in ended.err and "6 answers" in ended.err


def test_all_tokens_are_learned_if_asked(tmp_path):
    counts = {}
    for loss_on in ("assistant", "all"):
        folder = write_chat_data(tmp_path / loss_on, "--loss-on", loss_on)
        counts[loss_on] = int((np.load(folder / "train" / "all__labels.npy") >= 0).sum())
    assert counts["all"] > 1.5 * counts["assistant"]
