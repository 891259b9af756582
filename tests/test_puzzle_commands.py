"""The commands of the reference, as our pages tell them: built, trained, evaluated, saved and resumed on a small scale."""

import json
import re
import shlex
from pathlib import Path

import pytest

from dataset.build_arc_dataset import main as build_arc
from dataset.build_maze_dataset import main as build_maze
from dataset.build_sudoku_dataset import main as build_sudoku
from engine.checkpoints.load import load_checkpoint
from tests.dataset.puzzle_samples import parity_json
from tests.tiny import ROOT, TORCHRUN, Ended, end, logged, pretrain, start

DOCS = ROOT / "docs"
BUILDERS = {"sudoku": build_sudoku, "maze": build_maze, "arc": build_arc}
# What makes a run small; everything else of a documented command stays as it is told.
SMALL = ["arch.hidden_size=32", "arch.num_heads=2", "arch.H_cycles=2", "arch.L_cycles=1", "arch.halt_max_steps=2"]
SMALL += ["arch.expansion=1", "global_batch_size=4"]
SMALL += ["arch.forward_dtype=float32", "device=cpu", "compile=false", "dataloader_workers=0", "checkpoint_interval=3"]
ALSO = {"sudoku": ["--num-workers", "1", "--num-aug", "2"], "maze": ["--num-workers", "1"], "arc": ["--num-aug", "2"]}


def documented(page: str, word: str) -> list[str]:
    """The commands in the fenced blocks of a page in which this word stands."""
    commands = []
    for block in re.findall(r"```(?:ba)?sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL):
        lines = [line for line in block.replace("\\\n", " ").splitlines() if not line.startswith("#")]
        commands += [re.sub(r"\s+", " ", line).strip() for line in lines if word in line]
    return commands


TRAINING = documented("TINYRECURSIVEMODELS_README.md", "pretrain.py")
BUILDING = documented("puzzles.md", "build_")


def told(commands: list[str], *words: str) -> list[str]:
    """Program and arguments of the one command in which these words stand."""
    (command,) = [command for command in commands if all(word in command for word in words)]
    return shlex.split(command)


def training(name: str) -> list[str]:
    """The overrides of the documented command for this data set."""
    words = told(TRAINING, f"data/{name}]")
    return words[words.index("pretrain.py") + 1 :]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the layout of the real ones, and the data sets that the documented builder commands make of them."""
    place = tmp_path_factory.mktemp("puzzles")
    for kind in ("sudoku", "maze"):
        (place / kind).mkdir()
        for split, text in parity_json("builder_inputs")[kind].items():
            (place / kind / f"{split}.csv").write_bytes(text.encode())
    kaggle = place / "kaggle" / "combined"
    kaggle.mkdir(parents=True)
    files = parity_json("builder_inputs")["arc"]
    concept = files["x_concept_challenges.json"]
    answers = {name: [pair["input"] for pair in puzzle["test"]] for name, puzzle in concept.items()}
    for name, content in (files | {"x_concept_solutions.json": answers}).items():
        for version in ("", "2"):
            new = re.sub(r"x_(training|evaluation)_", rf"arc-agi_\g<1>{version}_", name).replace("x_", "arc-agi_")
            (kaggle / new).write_text(json.dumps(content))

    commands = [
        ("sudoku", told(BUILDING, "--subsample-size 1000 --num-aug 1000", "sudoku-extreme")),
        ("maze", told(BUILDING, "dataset/build_maze_dataset.py")),
        ("arc", told(BUILDING, "arc1concept")),
        ("arc", told(BUILDING, "arc2concept")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for kind, words in commands:
            first = next(i for i, word in enumerate(words) if word.endswith((".py", "_dataset"))) + 1
            local = [] if kind == "arc" else ["--source", kind]
            BUILDERS[kind]([*words[first:], *local, *ALSO[kind]])
    return place


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


def assert_trained(ended: Ended, run_dir: Path, steps: int) -> None:
    assert ended.code == 0, ended.err
    lines = logged(run_dir)
    assert [line["step"] for line in lines if "train/lm_loss" in line] == list(range(1, steps + 1))
    assert {key.partition("/")[0] for key in lines[-1]} >= {"all"} and ended.report["all"]["steps"] == 2.0
    assert (run_dir / "latest").resolve().name == f"step_{steps}"


def test_there_are_commands_for_all_four_puzzle_sets() -> None:
    named = {path for command in TRAINING for path in re.findall(r"data_paths=\S*\[(data/[\w-]+)\]", command)}
    assert named == {"data/sudoku-extreme-1k-aug-1000", "data/maze-30x30-hard-1k", "data/arc1concept-aug-1000"}


@pytest.mark.parametrize(
    ("data", "leave_out", "other_data"),
    [
        ("sudoku-extreme-1k-aug-1000", (), None),
        ("sudoku-extreme-1k-aug-1000", ("arch.mlp_t", "arch.pos_encodings"), None),  # the variant with attention
        ("maze-30x30-hard-1k", (), None),
        ("arc1concept-aug-1000", (), "arc2concept-aug-1000"),
    ],
    ids=["sudoku_mlp", "sudoku_att", "maze", "arc2"],
)
def test_a_documented_command_trains_evaluates_saves_and_resumes(
    here: Path, data: str, leave_out: tuple[str, ...], other_data: str | None
) -> None:
    words = [word.replace(data, other_data or data) for word in training(data) if not word.startswith(leave_out or "?")]
    project, name = ("project_name=try", f"+run_name={data}-{len(leave_out)}")
    words = [*(word for word in words if not word.startswith("+run_name=")), *SMALL, project, name]
    run_dir = here / "checkpoints" / "try" / name.removeprefix("+run_name=")
    assert_trained(pretrain([*words, "max_steps=3"]), run_dir, steps=3)
    assert load_checkpoint(run_dir / "step_3").ema is not None, "every documented command averages its weights"
    resumed = pretrain([*words, "max_steps=5", "resume=true"])
    assert "resumed from" in resumed.err and "done: 2 steps" in resumed.err
    assert_trained(resumed, run_dir, steps=5)
    if other_data:
        assert set(resumed.report["ARC"]) == {f"ARC/pass@{k}" for k in (1, 2, 5, 10, 100, 1000)}


def test_data_sets_that_do_not_fit_together_are_refused_before_the_run(here: Path) -> None:
    words = [*training("maze-30x30-hard-1k"), *SMALL, f"checkpoint_path={here / 'none'}"]
    sudoku = "data/sudoku-extreme-1k-aug-1000"
    mixed = pretrain([*words, f"data_paths=[data/maze-30x30-hard-1k,{sudoku}]"])
    assert mixed.code == 1 and "cannot be mixed: seq_len=49 and 81, vocab_size=6 and 11" in mixed.err
    tested = pretrain([*words, f"data_paths_test=[{sudoku}]"])
    assert tested.code == 1 and f"cannot be tested on {sudoku}: seq_len=49 and 81, vocab_size=6 and 11" in tested.err
    arc = [*training("arc1concept-aug-1000"), *SMALL, f"checkpoint_path={here / 'none'}", "evaluators=[]"]
    more = pretrain([*arc, "data_paths_test=[data/arc1concept-aug-1000,data/arc2concept-aug-1000]"])
    assert more.code == 1 and "puzzle identifiers, while the model has embeddings of" in more.err
    assert not list(here.glob("none/step_*"))


def test_arc_on_several_ranks_and_judged_alone_by_its_recipe(here: Path) -> None:
    """The documented form with torchrun, with two ranks instead of four; then the short form of the same command."""
    assert told(TRAINING, "arc1concept")[:3] == ["torchrun", "--nproc-per-node", "4"]
    run_dir = here / "ranks"
    words = [*training("arc1concept-aug-1000"), *SMALL, f"checkpoint_path={run_dir}", "max_steps=3"]
    trained = end(start(words, here, *TORCHRUN))
    assert_trained(trained, run_dir, steps=3)
    submission = json.loads((run_dir / "evaluator_ARC_step_3" / "submission.json").read_text())
    assert set(submission) == {"bb01", "bb02", "bb03"}

    recipe = ["arch=trm", "recipe=arc1", "eval_only=true", f"load_checkpoint={run_dir / 'step_3'}", *SMALL]
    alone = pretrain([*recipe, f"checkpoint_path={here / 'alone'}"])
    assert alone.code == 0, alone.err
    assert alone.report["ARC"] == trained.report["ARC"]
    assert alone.report["all"] == pytest.approx(trained.report["all"], rel=1e-5, abs=1e-6)

    harder = pretrain([*recipe, f"checkpoint_path={here / 'hard'}", "eval.rollouts=2", "eval.noise=0.3"])
    assert harder.code == 0 and {"pass_any", "pass_plain"} <= set(harder.report["all"]), harder.err
    assert set(harder.report["ARC"]) == set(alone.report["ARC"])
    refused = pretrain([*recipe, f"checkpoint_path={here / 'none'}", "eval.validation_split=0.2"])
    assert refused.code == 1 and "eval.validation_split=0" in refused.err
