"""The commands of the distillation quickstart, as they are typed, but for sizes that fit a second."""

import shlex
from pathlib import Path

import pytest

from tests.distillation.run_samples import (
    RETNET,
    done,
    history,
    perplexity_main,
    train_main,
    words,
    write_world,
)
from tests.tiny import ROOT, steps_on_disk, within

TINY = words(
    {
        **{"model_variant": "tiny", "student_overrides": RETNET, "max_seq_length": 64, "use_bf16": False},
        **{"warmup_batches": 0, "eval_perplexity_samples": 2, "device": "cpu", "use_wandb": False, "seed": 1},
        **{"teacher_model": "teacher", "tokenizer_name": "tokenizer", "teacher_topk": 16, "teacher_dtype": "float32"},
    }
)
DIRECT = "python -m src.distillation.scripts.train --config configs/train_direct.yaml"
# As the quickstart has them, in its order, and what makes the numbers of steps small.
COMMANDS = [
    (
        f"{DIRECT} --weight-decay 0.01 --enable-saddle-interventions --learning-rate 0.001",
        ["--max-steps", "2", "--eval-interval", "1"],
    ),
    (f"{DIRECT} --pretrain-ce-only --max-steps 10000", ["--max-steps", "2"]),
    (f"{DIRECT} --resume-from runs/direct_mode/checkpoint_latest.pt", ["--max-steps", "3"]),
    (f"{DIRECT} --max-steps 10 --log-interval 1 --eval-interval 0", ["--max-steps", "3"]),
    ("python -m src.distillation.evaluation.perplexity --config configs/train_direct.yaml --split val", []),
    (
        f"{DIRECT} --cache-logits --cache-dir data/teacher_cache",
        ["--max-steps", "8", "--eval-interval", "8"],
    ),  # a whole epoch
    (
        "python -m src.distillation.scripts.train --config configs/train_cached.yaml",
        ["--max-steps", "2", "--gradient-accumulation-steps", "2", "--no-eval-niah", "--eval-interval", "0"],
    ),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    root = write_world(tmp_path_factory.mktemp("quickstart"))
    (root / "data").mkdir()
    (root / "packed").rename(root / "data" / "distillation_preprocessed")
    (root / "configs").symlink_to(ROOT / "configs")
    return root


def test_every_command_does_what_the_quickstart_says(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    results = []
    for command, smaller in COMMANDS:
        _, _, module, *flags = shlex.split(command)
        main = {"src.distillation.scripts.train": train_main}.get(module, perplexity_main)
        results.append(done(within(main, [*flags, *TINY, *smaller])))
    folder = checkout / "runs" / "direct_mode"
    assert (folder / "checkpoint_latest.pt").is_file() and (folder / "train.log").is_file()
    modes = [(line["step"], line["from_mode"], line["to_mode"]) for line in history(folder)]
    assert modes[:3] == [(0, None, "direct"), (0, None, "ce"), (2, "ce", "direct")]
    assert steps_on_disk(checkout / "runs" / "direct_mode-2") == [3], (
        "the short run did not take the trained one's place"
    )
    assert "val" in results[0] and "val" not in results[3] and results[3]["step"] == 3
    assert results[4]["split"] == "val" and results[4]["perplexity"] > 1 and results[4]["step"] == 3
    assert results[4]["run_dir"] == "runs/direct_mode"
    assert steps_on_disk(checkout / "runs" / "cached_mode") == [2]
