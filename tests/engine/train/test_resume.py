"""A trainer state that is signed but malformed is one message that names its file, never a traceback."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dataset.files.disk import file_sha256
from engine.checkpoints.load import load_checkpoint
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import Ended, flags, pretrain, write_sudoku

HOSTILE: list[Any] = [
    None,
    -1,
    1 << 70,
    10**12,
    2.5,
    "x",
    [],
    {},
    [1, 2],
    {"a": 1},
    True,
    torch.zeros(3),
    torch.zeros(0),
]


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of a few steps, and the words that resume it."""
    folder = tmp_path_factory.mktemp("resumed")
    words = flags(write_sudoku(folder / "data"), folder / "run", {"puzzle_emb_ndim": 32}, max_steps=9, ema=True)
    assert pretrain([*words, "max_steps=4"]).code == 0
    return folder / "run", words


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("carried")
    words = text_flags(write_corpus(folder / "data"), folder / "run", {"recursion": "carry"}, epochs=1, max_steps=9)
    assert train_text([*words, "max_steps=4"]).code == 0
    return folder / "run", words


def resumed(
    run: tuple[Path, list[str]], tmp_path: Path, edit: Callable[[Any], Any], start: Callable[[list[str]], Ended]
) -> Ended:
    """How the run ends whose trainer state has been edited and signed."""
    copied = tmp_path / "copy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(run[0], copied, symlinks=True)
    (step,) = copied.glob("step_*")
    content = load_checkpoint(step, with_trainer=True).trainer
    changed = edit(content)
    torch.save(content if changed is None else changed, step / "trainer.pt")
    meta = json.loads((step / "meta.json").read_text())
    size = (step / "trainer.pt").stat().st_size
    meta["files"]["trainer.pt"] = {"size": size, "sha256": file_sha256(step / "trainer.pt")}
    (step / "meta.json").write_text(json.dumps(meta))
    return start([*run[1], f"checkpoint_path={copied}", "resume=true"])


@pytest.mark.parametrize("is_old", [False, True])
def test_which_weights_decay_cannot_change_on_the_way(
    puzzles: tuple[Path, list[str]], tmp_path: Path, is_old: bool
) -> None:
    run, words = tmp_path / "run", puzzles[1]
    shutil.copytree(puzzles[0], run, symlinks=True)
    if is_old:  # the option is younger than the run
        (file,) = run.glob("step_*/config.yaml")
        file.write_text("".join(x for x in file.read_text().splitlines(True) if "weight_decay_emb" not in x))
    words = [*words, f"checkpoint_path={run}", "resume=true", "max_steps=5"]
    ended = pretrain([*words, "weight_decay_embeddings=false"])
    assert ended.code == 1 and "weight_decay_embeddings=false" in ended.err
    assert pretrain([*words, "weight_decay_embeddings=true"]).code == 0


def put(value: Any, *path: Any) -> Callable[[Any], None]:
    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


def halved(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value[: len(value) // 2].clone() if value.dim() else value
    if isinstance(value, dict):
        return {key: halved(item) for key, item in value.items()}
    return [halved(item) for item in value] if isinstance(value, list) else value


def without(*path: Any) -> Callable[[Any], None]:
    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return edit


EDITS: dict[str, Callable[[Any], Any]] = {
    "list": lambda content: [content],
    "empty": lambda content: {},
    "numbers": lambda content: dict.fromkeys(content, 5),
    "nothing": lambda content: dict.fromkeys(content),
    **{f"without {name}": without(name) for name in ("state", "optimizers", "task", "torch_rng")},
    **{f"list for {name}": put([], name) for name in ("state", "optimizers", "torch_rng")},
    "halved optimizers": lambda content: content.update(optimizers=halved(content["optimizers"])),
    "halved task": lambda content: content.update(task=halved(content["task"])),
    **{f"step {value}": put(value, "state", "step") for value in ("nine", -3, 2.5, 1 << 70, None)},
    "iteration none": put(None, "state", "iteration"),
    "without step": without("state", "step"),
    "unknown": put(1, "state", "colour"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_malformed_trainer_state_is_refused_by_name(
    puzzles: tuple[Path, list[str]], tmp_path: Path, name: str
) -> None:
    ended = resumed(puzzles, tmp_path, EDITS[name], pretrain)
    assert ended.code == 1 and ("trainer.pt" in ended.err or "global_batch_size" in ended.err), ended.err


def change_at_random(content: Any, draw: random.Random) -> None:
    """Another value, another shape, or none, at a random place."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = draw.choice(keys)
        inner = content[key]
        if not (isinstance(inner, dict | list) and inner and draw.random() < 0.85):
            break
        content = inner
    if isinstance(inner, torch.Tensor) and inner.dim() and draw.random() < 0.5:
        content[key] = draw.choice(
            [inner[:-1].clone(), inner.unsqueeze(0).clone(), inner.double(), inner.flatten()[:1]]
        )
    elif isinstance(content, dict) and draw.random() < 0.3:
        del content[key]
    else:
        content[key] = copy.copy(draw.choice(HOSTILE))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["puzzles", "text"])
def test_changes_at_random_places_never_end_in_a_traceback(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(kind)
    for seed in range(60):
        draw = random.Random(seed)
        ended = resumed(run, tmp_path, lambda content: change_at_random(content, draw), START[kind])  # noqa: B023
        assert ended.code in (0, 1) and "Traceback" not in ended.err, f"seed {seed}: {ended.err}"


START: dict[str, Callable[[list[str]], Ended]] = {"puzzles": pretrain, "text": train_text}
