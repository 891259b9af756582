"""A checkpoint leaves as a folder whose readers, transformers and ours, compute the same and write the same texts."""

import json

import pytest
import torch
import yaml

from dataset.text.conversation import Turn
from engine.build.export import export
from engine.build.text_checkpoint import load_model
from engine.checkpoints.load import load_checkpoint
from engine.export.options import ExportOptions
from engine.generate.options import OpenOptions, ReplyOptions
from engine.generate.reply import reply
from tests.chat_runs import chat_flags, run_door, write_chat_data
from tests.text_runs import text_flags, train_text, write_corpus

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.models.hrm_text")
QUESTIONS = ("How many cats do I have?", "My name is Ada.", "What is it?")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder in which `run(kind)` trains what it is asked for, once."""
    root = tmp_path_factory.mktemp("export")
    made = {}

    def run(kind, *words):
        if (kind, words) not in made:
            folder = root / f"run{len(made)}"
            if kind == "chat":
                data = root / "chat"
                data = data if data.exists() else write_chat_data(data)
                ended = run_door("pretrain.py", *chat_flags(data, folder), *words)
            else:
                data = root / "data"
                data = data if data.exists() else write_corpus(data)
                ended = train_text([*text_flags(data, folder, epochs=1), *words])
            assert ended.code == 0, ended.err
            made[kind, words] = folder
        return made[kind, words]

    return run


def exported(run, output, **options):
    return export(ExportOptions(OpenOptions(str(run)), output=str(output), **options))


def same_weights(run, output):
    one, other = load_checkpoint(run), load_checkpoint(output)
    expected = one.weights | (one.ema or {})
    assert expected.keys() == other.weights.keys()
    return all(torch.equal(expected[name], other.weights[name]) for name in expected)


def their_texts(folder, loaded, num_tokens):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    texts = []
    for text in QUESTIONS:
        asked = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, max_new_tokens=num_tokens, max_length=None, do_sample=False)
        texts.append(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_a_trm_for_transformers_writes_the_same_texts(kind, runs, tmp_path):
    run = runs(kind, "arch=trm_hf")
    found = exported(run, tmp_path / "out")
    assert found["layout"] == "hrm_text" and found["compared_on"] == "held-out text"
    assert found["max_logit_difference"] < 1e-4 and same_weights(run, tmp_path / "out")
    options, conversations = ReplyOptions(max_tokens=12), [[Turn("user", text)] for text in QUESTIONS]
    texts = []
    for place in (run, tmp_path / "out"):
        loaded = load_model(OpenOptions(str(place), device="cpu"))
        texts.append([answer.text for answer in reply(loaded, conversations, options)])
    assert texts[0] == texts[1] == their_texts(tmp_path / "out", loaded, 12)
    assert len(set(texts[0])) > 1 or any(texts[0])


def test_another_depth_is_what_all_readers_take(runs, tmp_path):
    run = runs("text", "arch=trm_hf")
    assert exported(run, tmp_path / "out", depth=3)["depth"] == 3
    assert json.loads((tmp_path / "out/config.json").read_text())["H_cycles"] == 3  # of one each
    assert load_model(OpenOptions(str(tmp_path / "out"))).model.config.halt_max_steps == 3


def test_what_no_class_computes_leaves_in_our_form_or_is_refused(runs, tmp_path, capsys):
    run = runs("text")
    with pytest.raises(ValueError, match="arch.injection=call"):
        exported(run, tmp_path / "out", format="hf")
    assert not list(tmp_path.iterdir())
    found = exported(run, tmp_path / "out")
    assert "arch.injection=call" in capsys.readouterr().err
    assert found["layout"] == "trm" and found["max_logit_difference"] == 0 and same_weights(run, tmp_path / "out")


def test_an_export_replaces_nothing(runs, tmp_path):
    run = runs("text", "arch=trm_hf")
    (tmp_path / "out").mkdir()
    exported(run, tmp_path / "out", format="trm")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="other things"):
        exported(run, tmp_path / "out")
    assert before == sorted(path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="other things"):
        exported(run, tmp_path / "file")


def test_nothing_of_this_machine_leaves(runs, tmp_path):
    exported(runs("text", "arch=trm_hf"), tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert "checkpoint_path" not in config and "device" not in config
