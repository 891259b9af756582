"""A checkpoint is evaluated on the split it was trained beside; another one is refused, or its overlap is counted."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dataset.files.jsonl import hash_fraction
from engine.checkpoints.load import load_checkpoint
from engine.config.command_line import command_line
from engine.generate.options import BigramOptions, CalibrateOptions
from tests.dataset.instruct_samples import make_lines
from tests.text_runs import infer_text, text_flags, train_text, write_corpus
from tests.tiny import flags, pretrain, write_sudoku

RECORDS = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    ended = train_text(text_flags(write_corpus(folder / "data"), folder / "run", epochs=1))
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The run, and its corpus where it was trained, which may be spoiled."""
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    for step in (tmp_path / "run").glob("step_*/config.yaml"):
        step.write_text(step.read_text().replace(str(trained / "data"), str(tmp_path / "data")))
    shutil.copytree(trained / "data", tmp_path / "data")
    return tmp_path


def refused(folder: Path, *words: Any) -> str:
    ended = infer_text("--checkpoint", folder / "run", *words)
    assert ended.code == 1 and ended.out == "", ended
    return ended.err


def overlap(folder: Path, *words: Any) -> tuple[int, int, int]:
    """Evaluated records that were trained on, evaluated ones, and those trained on."""
    ended = infer_text("--checkpoint", folder / "run", "--allow-other-split", *words)
    assert ended.code == 0, ended.err
    found = re.search(r"(\d+) of (\d+) evaluated records are among the (\d+)", ended.err)
    assert found, ended.err
    return int(found[1]), int(found[2]), int(found[3])


def edit_step(folder: Path, name: str, change: Any) -> None:
    (step,) = (folder / "run").glob("step_*")
    load, dump = (json.loads, json.dumps) if name.endswith("json") else (yaml.safe_load, yaml.safe_dump)
    data = load((step / name).read_text())
    change(data)
    (step / name).write_text(dump(data))


@pytest.mark.parametrize("word", ["dataset.test_ratio=0.5", "dataset.seed=3"])
def test_another_rule_is_refused_and_its_overlap_counted(folder: Path, word: str) -> None:
    message = refused(folder, "--overrides", word)
    assert word.split("=")[0] in message and "--allow-other-split" in message
    key, value = word.split("=")
    numbers = np.arange(RECORDS)
    trained = hash_fraction(0, numbers) >= 0.25
    tested = hash_fraction(3 if key.endswith("seed") else 0, numbers) < (0.5 if key.endswith("ratio") else 0.25)
    expected = (int((trained & tested).sum()), int(tested.sum()), int(trained.sum()))
    assert expected[0] > 0
    assert overlap(folder, "--overrides", word) == expected


def test_a_corpus_that_moved_is_the_same_corpus(folder: Path) -> None:
    (folder / "data").rename(folder / "moved")
    ended = infer_text("--checkpoint", folder / "run", "--data-dir", folder / "moved")
    assert ended.code == 0 and "evaluated records" not in ended.err, ended.err


def test_another_corpus_is_refused_and_its_overlap_counted(folder: Path) -> None:
    lines = make_lines(RECORDS)
    other = write_corpus(folder / "other")
    (other / "SlimOrca.jsonl").write_text("".join(f"{line}\n" for line in lines[1:]))  # every number is one less
    assert "dataset.data_dir" in refused(folder, "--data-dir", other)
    is_test = hash_fraction(0, np.arange(RECORDS)) < 0.25
    both = int((~is_test[1:] & is_test[:-1]).sum())
    assert both > 0
    assert overlap(folder, "--data-dir", other) == (both, int(is_test[:-1].sum()), int((~is_test).sum()))


def test_a_corpus_that_was_replaced_is_noticed(folder: Path) -> None:
    (folder / "data" / "SlimOrca.jsonl").write_text("".join(f"{line}\n" for line in make_lines(RECORDS)[1:]))
    assert "dataset.data_dir" in refused(folder)


def test_a_checkpoint_without_a_digest_is_compared_where_it_was_trained(folder: Path) -> None:
    """As older versions wrote them; sizes were one number for both splits then."""
    edit_step(folder, "meta.json", lambda meta: meta.pop("corpus"))
    edit_step(folder, "config.yaml", lambda config: config["dataset"].pop("test_size"))
    edit_step(folder, "config.yaml", lambda config: config["dataset"].update(subset_size=12))
    ended = infer_text("--checkpoint", folder / "run")
    assert ended.code == 0 and "12 train, 12 test" in ended.err, ended.err
    shutil.copytree(folder / "data", folder / "copy")
    assert infer_text("--checkpoint", folder / "run", "--data-dir", folder / "copy").code == 0
    shutil.rmtree(folder / "data")
    assert "dataset.data_dir" in refused(folder, "--data-dir", folder / "copy")
    ended = infer_text("--checkpoint", folder / "run", "--data-dir", folder / "copy", "--allow-other-split")
    assert ended.code == 0 and "cannot be counted" in ended.err


def test_training_that_only_evaluates_keeps_the_split_too(folder: Path) -> None:
    words = {"load_checkpoint": str(folder / "run"), "eval_only": True}
    ended = train_text(text_flags(folder / "data", folder / "new", **words))
    assert ended.code == 0, ended.err
    ended = train_text(text_flags(folder / "data", folder / "new", **words, dataset__test_ratio=0.5))
    assert ended.code == 1 and "dataset.test_ratio" in ended.err


def test_every_program_that_takes_held_out_records_keeps_the_split(folder: Path) -> None:
    from engine.generate.calibrate import calibrate_checkpoint
    from lab.ngram import compare_with_bigram

    words = ["--checkpoint", str(folder / "run"), "--overrides", "dataset.test_ratio=0.5"]
    with pytest.MonkeyPatch.context() as patch, command_line_of(BigramOptions(), patch, words) as options:
        with pytest.raises(ValueError, match=r"dataset\.test_ratio"):
            compare_with_bigram(options)
    words.append("arch.halt_max_steps=4")
    with pytest.MonkeyPatch.context() as patch, command_line_of(CalibrateOptions(), patch, words) as options:
        with pytest.raises(ValueError, match=r"dataset\.test_ratio"):
            calibrate_checkpoint(options)


def command_line_of(defaults: Any, patch: pytest.MonkeyPatch, words: list[str]) -> Any:
    patch.setattr("sys.argv", ["program", *words])
    return command_line(defaults, None)


def test_validation_puzzles_are_those_of_the_training(tmp_path: Path) -> None:
    data = write_sudoku(tmp_path / "data")
    assert pretrain(flags(data, tmp_path / "run", **{"eval.validation_split": 0.25}, epochs=3)).code == 0
    for share, seed, code in ((0.25, 0, 0), (0.5, 0, 1), (0.25, 1, 1), (0.0, 1, 0)):
        words = {"eval.validation_split": share, "seed": seed, "eval_only": True}
        ended = pretrain(flags(data, tmp_path / "new", load_checkpoint=str(tmp_path / "run"), **words))
        assert ended.code == code, ended.err
        assert code == 0 or "eval.validation_split" in ended.err


def test_the_digest_is_kept_with_every_checkpoint(folder: Path) -> None:
    assert len(load_checkpoint(folder / "run").meta["corpus"]) == 64
