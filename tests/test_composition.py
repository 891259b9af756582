"""Questions that chain facts, from the recipe to the answer, in a world that is learnt within seconds."""

import json
import re
from pathlib import Path

import pytest

from dataset.text.composition import CompositionOptions, make_composition_records
from dataset.text.conversation import Turn
from engine.build.text_checkpoint import load_model
from engine.generate.exits import write_thresholds
from engine.generate.options import OpenOptions, ReplyOptions
from engine.generate.reply import reply
from tests.text_runs import infer_text, train_text
from tests.tiny import run_door

WORLD = {"people": 6, "relations": 1, "hops": 3, "longer": 1, "questions": 6, "held_out": 2, "turns": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the recipe, beside its report."""
    folder = tmp_path_factory.mktemp("composition")
    words = [f"dataset.composition.{name}={value}" for name, value in WORLD.items()]
    words += ["recipe=composition", f"dataset.data_dir={folder / 'data'}", f"checkpoint_path={folder / 'run'}"]
    words += ["device=cpu", "arch.hidden_size=32", "global_batch_size=2", "epochs=100", "lr=0.01", "weight_decay=0.1"]
    ended = train_text(words)
    assert ended.code == 0, ended.err
    (folder / "report.json").write_text(ended.out.splitlines()[-1])
    return folder


def test_every_set_is_reported_by_hops_and_by_passes(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert next(iter(report)) == "validation" and {"id2", "id3", "id4"} <= set(report)
    for metrics in report.values():
        assert {f"depth_{number}/exact_accuracy" for number in range(1, 7)} <= set(metrics)
    best = json.loads((folder / "run" / "best" / "meta.json").read_text())
    assert best["best_value"] == report["validation"]["exact_accuracy"]


def test_inference_finds_what_training_reported(folder: Path, tmp_path: Path) -> None:
    ended = infer_text("--checkpoint", folder / "run", "--split", "test", "--output-dir", tmp_path)
    assert ended.code == 0, ended.err
    (file,) = tmp_path.glob("metrics_*.json")
    found, report = json.loads(file.read_text()), json.loads((folder / "report.json").read_text())
    assert list(found) == list(report)
    for name, metrics in report.items():
        assert f"{name}:" in ended.out.splitlines()
        for depth in range(1, 7):
            assert found[name]["by_depth"][str(depth)]["token_loss"] == metrics[f"depth_{depth}/token_loss"]


def test_inference_goes_as_deep_as_asked_and_reports_these_depths(folder: Path, tmp_path: Path) -> None:
    ended = infer_text("--checkpoint", folder / "run", "--depths", "2,8,1", "--output-dir", tmp_path)
    assert ended.code == 0, ended.err
    (file,) = tmp_path.glob("metrics_*.json")
    report = json.loads((folder / "report.json").read_text())
    for name, metrics in json.loads(file.read_text()).items():
        assert list(metrics["by_depth"]) == ["1", "2", "8"]
        assert metrics["by_depth"]["2"]["token_loss"] == report[name]["depth_2/token_loss"]
        assert metrics["token_loss"] == metrics["by_depth"]["8"]["token_loss"]
    less = ["--depths", "2,8", "--overrides", "eval.halt_max_steps=4"]
    refused = infer_text("--checkpoint", folder / "run", *less, "--output-dir", tmp_path)
    assert refused.code == 1 and "depths=8" in refused.err


def test_the_calibrated_rule_answers_in_place_of_a_number_of_steps(folder: Path) -> None:
    checkpoint = ("--checkpoint", folder / "run")
    rules = {"steps": 6, "best": "margin", "margin": {"threshold": 0.5}, "kl": {"threshold": 0.1}}
    write_thresholds((folder / "run" / "best").resolve(), rules)
    said = ["--message", "Bade mother", "--system-message", "", "--json", "--device", "cpu"]
    auto, exits = (
        json.loads(run_door("generate_instruct.py", *checkpoint, *said, *words).out)
        for words in (["--depth", "auto"], ["--exit", "margin"])
    )
    assert auto["depths"] == exits["depths"] and auto["tokens"] == exits["tokens"] and max(auto["depths"]) <= 6
    ended = run_door("generate_instruct.py", *checkpoint, *said, "--depth", "9")
    assert set(json.loads(ended.out)["depths"]) == {9} and "--depths 4,9" in ended.err


def test_a_trained_fact_is_answered_without_markers(folder: Path) -> None:
    loaded = load_model(OpenOptions(str(folder / "run"), device="cpu"))
    prompt = loaded.template.encode_prompt([Turn("user", "Bade mother")])
    assert loaded.tokenizer.decode(prompt) == "Bade mother"
    trained = make_composition_records(CompositionOptions(**WORLD), 0)["train"]
    facts = [record["conversations"] for record in trained if record["hops"] == [1]]
    asked = {question["value"]: answer["value"] for question, answer in facts}
    for question, answer in asked.items():
        (said,) = reply(loaded, [[Turn("user", question)]], ReplyOptions(max_tokens=4))
        assert (said.text, said.finish) == (answer, "eos")


def test_another_world_is_another_corpus_and_its_overlap_is_counted(folder: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", folder / "run", "--output-dir", tmp_path, "--overrides"]
    refused = infer_text(*words, "dataset.composition.people=7")
    assert refused.code == 1 and "people=7" in refused.err and "people=6" in refused.err
    counted = infer_text(*words, "dataset.composition.held_out=1", "--allow-other-split")
    assert counted.code == 0, counted.err
    trained, other = (make_composition_records(CompositionOptions(**WORLD | {"held_out": n}), 0) for n in (2, 1))
    seen = [record["conversations"] for record in trained["train"]]
    asked = [record["conversations"] for name, found in other.items() if name != "train" for record in found]
    found = re.findall(r"(\d+) of (\d+) evaluated records", counted.err)[0]
    assert tuple(map(int, found)) == (sum(one in seen for one in asked), len(asked))


def test_trained_questions_are_counted_one_by_one(folder: Path, tmp_path: Path) -> None:
    words = ["--split", "train", "--allow-other-split", "--output-dir", tmp_path, "--overrides"]
    ended = infer_text("--checkpoint", folder / "run", *words, "dataset.composition.turns=3")
    overlap, evaluated = re.findall(r"(\d+) of (\d+) evaluated records", ended.err)[0]
    assert overlap == evaluated, "the same questions in longer conversations"


@pytest.mark.parametrize(("recipe", "depth"), [("composition_sentences", 6), ("composition_sentences_dense", 1)])
def test_a_recipe_of_sentences_trains_and_answers_a_sentence(recipe: str, depth: int, tmp_path: Path) -> None:
    words = [f"dataset.composition.{name}={value}" for name, value in WORLD.items()]
    words += [f"recipe={recipe}", f"dataset.data_dir={tmp_path / 'data'}", f"checkpoint_path={tmp_path / 'run'}"]
    ended = train_text([*words, "device=cpu", "arch.hidden_size=32", "global_batch_size=2", "max_steps=3"])
    assert ended.code == 0, ended.err
    report = json.loads(ended.out.splitlines()[-1])
    for metrics in report.values():
        assert f"depth_{depth}/exact_accuracy" in metrics
        assert f"depth_{depth + 1}/exact_accuracy" not in metrics, "the twin is evaluated as it was trained"
    loaded = load_model(OpenOptions(str(tmp_path / "run"), device="cpu"))
    name = make_composition_records(CompositionOptions(**WORLD), 0)["id2"][0]["conversations"][1]["value"]
    question = f"Who is {name}'s mother's mother?"
    assert len(loaded.template.encode_prompt([Turn("user", question)])) == 8
    (said,) = reply(loaded, [[Turn("user", question)]], ReplyOptions(max_tokens=2))
    assert said.finish in ("eos", "length")
