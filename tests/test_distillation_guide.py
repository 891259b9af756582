"""The last section of the distillation guide, typed command by command: from made-up texts to a student, without a network."""

import json
import shlex
from pathlib import Path

import pytest

from tests.test_docs import documented_commands, typed
from tests.tiny import ROOT

GUIDE = ROOT / "docs" / "distillation.md"
# What makes the commands small: of each the flags whose value is replaced.
SMALLER = {
    "--count": "150",
    "--epochs": "1",
    "--max-steps": "4",
    "--eval-interval": "2",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    for entry in ROOT.iterdir():
        if entry.name not in ("data", "checkpoints", "runs", "teacher_adapters", ".git", ".venv"):
            (folder / entry.name).symlink_to(entry)
    (folder / "data").mkdir()
    for door in (ROOT / "data").glob("*.py"):
        (folder / "data" / door.name).symlink_to(door)
    return folder


def small(command: str) -> list[str]:
    """The same command, small; what needs a shell gets one."""
    words = command.split(" ") if ">" in command else shlex.split(command)
    for flag, value in SMALLER.items():
        if flag in words:
            words[words.index(flag) + 1] = value
    return ["bash", "-c", " ".join(words)] if ">" in command else words


@pytest.mark.timeout(600)
def test_the_small_way_through_the_guide_works_as_it_is_typed(place: Path) -> None:
    commands = documented_commands([GUIDE])
    first = next(i for i, command in enumerate(commands) if "make_conversations" in command)
    ended = []
    for command in commands[first:]:
        done = typed(small(command), place)
        assert done.code == 0, f"{command}\n{done.err[-2000:]}"
        ended.append(done.out)
    tuned = next(json.loads(out) for out in ended if '"tuned"' in out)
    assert tuned["tuned"]["perplexity"] < tuned["base"]["perplexity"]
    student = next(json.loads(out) for out in ended if '"kl"' in out)
    assert student["step"] == 4 and student["val"]["kl"] > 0
    assert (place / "runs" / "small" / "checkpoint_latest.pt").is_file()


def test_the_words_of_the_quickstart_stand_in_the_guide() -> None:
    text = " ".join(GUIDE.read_text().replace("\\\n", " ").split())
    for command in (
        "python data/download_missing_datasets.py",
        "python data/preprocess_to_parquet.py --input data/distillation --output data/distillation_preprocessed",
        "python scripts/finetune_teacher.py --config configs/teacher_ft.yaml --ram-disk",
        "--config configs/train_direct.yaml --weight-decay 0.01 --enable-saddle-interventions --learning-rate 0.001",
        "--resume-from runs/direct_mode/checkpoint_latest.pt",
        "python -m src.distillation.evaluation.perplexity --config configs/train_direct.yaml --split val",
    ):
        assert command in text, command
