"""A checkpoint leaves as a folder whose readers, transformers and ours, compute the same and write the same texts."""

import json
import sys

import pytest
import torch
import yaml

from dataset.text.conversation import Turn
from engine.build.export import export
from engine.build.text_checkpoint import load_model
from engine.checkpoints.load import load_checkpoint
from engine.export import native
from engine.export.hub import RecursiveModel
from engine.export.options import ExportOptions
from engine.generate.options import OpenOptions, ReplyOptions
from engine.generate.reply import reply
from tests.chat_runs import chat_flags, write_chat_data
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import ROOT, flags, pretrain, run_door, write_sudoku

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
    usual = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert usual["max_length"] == json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] + 1
    assert usual.get("temperature") == {"text": None, "chat": 0.7}[kind]
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


def test_whoever_may_read_one_file_may_read_all(runs, tmp_path):
    exported(runs("text", "arch=trm_hf"), tmp_path / "out")
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_nothing_of_this_machine_leaves(runs, tmp_path):
    exported(runs("text", "arch=trm_hf"), tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert "checkpoint_path" not in config and "device" not in config


HRM_LEAVES = ["arch=trm_hf", "arch.name=recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1", "arch.H_layers=1"]
KINDS = {
    "hrm": (HRM_LEAVES, "hrm_text"),
    "tied": (["arch=trm_hf", "arch.tie_embeddings=true", "arch.forward_dtype=bfloat16"], "hrm_text"),
    "dense": (["arch=dense_text", "arch.H_layers=2", "arch.L_layers=0", "arch.halt_max_steps=1"], "llama"),
    "averaged": (["arch=trm_text", "ema=true", "arch.forward_dtype=bfloat16"], "trm"),
    "learned positions": (["arch=trm_hf", "arch.pos_encodings=learned"], "trm"),
    "hrm, question in every call": (
        ["arch=hrm", "arch.H_layers=1", "arch.recursion=unrolled", "arch.halt_policy=fixed"],
        "trm",
    ),
    "looped": (["arch=looped_text", "arch.H_layers=1", "arch.L_layers=0", "arch.halt_max_steps=2"], "trm"),
    "one latent": (["arch=trm_singlez"], "trm"),
    "six latents": (["arch=trm_hier6"], "trm"),
    "retnet": (["arch=retnet_tiny", "arch.L_layers=0", "arch.H_layers=1", "arch.halt_max_steps=1"], "trm"),
    "prompt both ways": (["arch=trm_hf", "arch.prefix_mask=true"], "hrm_text"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_leaves_and_comes_back_bit_for_bit(kind, runs, tmp_path):
    words, layout = KINDS[kind]
    run = runs("text", *words)
    found = exported(run, tmp_path / "out")
    assert found["layout"] == layout and found["max_logit_difference"] < 1e-4
    assert same_weights(run, tmp_path / "out")
    answers = [reply_to(run), reply_to(tmp_path / "out")]
    assert answers[0] == answers[1]
    again = RecursiveModel.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[3, 5, 7]])
    assert torch.equal(again.eval()(ids)[0], again.eval()(ids)[0]) and again(ids).shape[:2] == (1, 3)


def reply_to(place):
    loaded = load_model(OpenOptions(str(place), device="cpu"))
    return [answer.text for answer in reply(loaded, [[Turn("user", QUESTIONS[0])]], ReplyOptions(max_tokens=8))]


@pytest.mark.parametrize("options", [{}, {"puzzle_emb_ndim": 32, "puzzle_emb_len": 2}, {"mlp_t": True}])
def test_puzzles_leave_without_their_data_and_come_back(options, tmp_path):
    data = write_sudoku(tmp_path / "data", identifiers=3)
    short = {"epochs": 1, "eval_interval": 1, "max_steps": 2}
    ended = pretrain(flags(data, tmp_path / "run", options, **short))
    assert ended.code == 0, ended.err
    data.rename(tmp_path / "moved")
    found = exported(tmp_path / "run", tmp_path / "out")
    assert found["layout"] == "trm" and same_weights(tmp_path / "run", tmp_path / "out")
    again = flags(tmp_path / "moved", tmp_path / "again", options, load_checkpoint=str(tmp_path / "out"), **short)
    assert "weights from" in pretrain(again).err
    scores = [
        pretrain([*flags(tmp_path / "moved", tmp_path / "e", options, load_checkpoint=str(place)), "eval_only=true"])
        for place in (tmp_path / "run", tmp_path / "out")
    ]
    assert scores[0].report == scores[1].report and scores[0].code == 0


def test_puzzles_of_an_older_version_need_their_data(tmp_path):
    data = write_sudoku(tmp_path / "data")
    ended = pretrain(flags(data, tmp_path / "run", epochs=1, eval_interval=1, max_steps=1))
    assert ended.code == 0, ended.err
    (meta,) = (tmp_path / "run").glob("step_*/meta.json")
    facts = json.loads(meta.read_text())
    meta.write_text(json.dumps({key: value for key, value in facts.items() if key != "data"}))
    assert exported(tmp_path / "run", tmp_path / "out")["layout"] == "trm"
    data.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="data set"):
        exported(tmp_path / "run", tmp_path / "other")


def test_all_programs_read_an_export(runs, tmp_path):
    text, chat = runs("text", "arch=trm_hf"), runs("chat", "arch=trm_hf")
    for run, name in ((text, "text"), (chat, "chat")):
        exported(run, tmp_path / name)
    asked = ["--message", "What is it?", "--device", "cpu", "--max-output-tokens", "6", "--system-message", ""]
    said = [run_door("generate_instruct.py", "--checkpoint", place, *asked) for place in (text, tmp_path / "text")]
    assert said[0].out == said[1].out and said[1].code == 0, said[1].err
    asked = ["--prompt", "Hello", "--device", "cpu", "--max-new-tokens", "6", "--temperature", "0"]
    said = [run_door("generate.py", "--checkpoint", place, *asked) for place in (chat, tmp_path / "chat")]
    assert said[0].out == said[1].out and said[1].code == 0, said[1].err
    scored = [
        run_door("inference_instruct.py", "--checkpoint", place, "--output-dir", tmp_path / str(at))
        for at, place in enumerate((text, tmp_path / "text"))
    ]
    assert scored[0].out == scored[1].out and scored[1].code == 0, scored[1].err
    data = next(text.parent.glob("data"))
    ended = train_text(
        [*text_flags(data, tmp_path / "more", epochs=1), "arch=trm_hf", f"load_checkpoint={tmp_path / 'text'}"]
    )
    assert ended.code == 0 and "weights from" in ended.err, ended.err


def test_an_export_cannot_be_resumed(runs, tmp_path):
    exported(runs("text", "arch=trm_hf"), tmp_path / "out")
    with pytest.raises(ValueError, match="trainer.pt"):
        load_checkpoint(tmp_path / "out", with_trainer=True)


def test_a_damaged_export_is_found(runs, tmp_path):
    exported(runs("text", "arch=trm_hf"), tmp_path / "out")
    content = bytearray((tmp_path / "out/rest.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "out/rest.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="rest.safetensors"):
        load_checkpoint(tmp_path / "out")


def test_the_card_of_the_run_becomes_the_model_card(runs, tmp_path):
    run = runs("text", "arch=trm_hf")
    exported(run, tmp_path / "out")
    card, of_run = ((place / "README.md").read_text() for place in (tmp_path / "out", run))
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert all(line in card for line in of_run.splitlines() if line.startswith("|"))
    assert "apply_chat_template" in card and "resume" not in card
    exported(runs("text"), tmp_path / "own")
    assert "RecursiveModel" in (tmp_path / "own/README.md").read_text()
    (run / "README.md").rename(run / "kept")
    exported(run, tmp_path / "none")
    (run / "kept").rename(run / "README.md")
    assert "no card" in (tmp_path / "none/README.md").read_text()


def test_an_old_transformers_or_none_is_said(runs, tmp_path, monkeypatch):
    from transformers.models.auto import configuration_auto

    run = runs("text", "arch=trm_hf")
    monkeypatch.delitem(configuration_auto.CONFIG_MAPPING_NAMES, "hrm_text")
    with pytest.raises(ValueError, match="hrm_text.*5.9"):
        exported(run, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "transformers.models.auto.configuration_auto", None)
    with pytest.raises(ValueError, match="missing"):
        exported(run, tmp_path / "out")
    assert exported(run, tmp_path / "out", format="trm")["layout"] == "trm"


def test_a_distilled_model_leaves(tmp_path):
    found = exported(ROOT / "tests/fixtures/written_before/distilled/run", tmp_path / "out")
    assert found["layout"] == "trm" and found["compared_on"] == "a text of ours"
    assert reply_to(tmp_path / "out") == reply_to(ROOT / "tests/fixtures/written_before/distilled/run")


def test_what_differs_does_not_appear(runs, tmp_path, monkeypatch):
    run = runs("text", "arch=trm_hf")
    for name, value, token in (("HALF_OPEN", 1.0, "logits"), ("HRM_STACKS", {"L_module": "L_level"}, None)):
        with monkeypatch.context() as broken:
            broken.setattr(native, name, value)
            with pytest.raises((ValueError, KeyError), match=token):
                exported(run, tmp_path / "out")
    with monkeypatch.context() as broken:
        broken.setattr("dataset.text.template.START", "")
        with pytest.raises(ValueError, match="other ids"):
            exported(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_was_calibrated_leaves_with_the_depth_it_is_for(runs, tmp_path):
    run = runs("text", "arch=trm_hf", "seed=5")
    (run / "best" / "exit.json").write_text("{}")
    exported(run, tmp_path / "out")
    exported(run, tmp_path / "deeper", depth=4)
    assert (tmp_path / "out/exit.json").exists() and not (tmp_path / "deeper/exit.json").exists()
