"""The sub-commands of scripts/bench.py: each composes its config from overrides and returns one JSON object."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from engine.config.check import check
from engine.config.compose import composed
from engine.config.schema import InstructConfig, PretrainConfig


def train(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Training steps under these overrides: of puzzles, or of text if the architecture is one for text."""
    from lab.bench.puzzles import bench_puzzles
    from lab.bench.text import bench_text

    overrides = [*overrides, f"global_batch_size={args.rows}"]
    puzzles = composed("cfg_pretrain", ["evaluators=[]", *overrides])
    if not puzzles["arch"]["loss"]["name"].endswith("TextLossHead"):
        config = check(PretrainConfig, puzzles)
        return bench_puzzles(config, positions=args.positions, vocab_size=args.vocab_size, steps=args.steps)
    return bench_text(
        instruct_config([*overrides, f"dataset.seq_len={args.positions}"]),
        vocab_size=args.vocab_size,
        depth=args.depth,
        steps=args.steps,
        compare=args.compare,
    )


def load(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Loading of the corpus that `cfg_pretrain_instruct` and these overrides name."""
    from lab.bench.text import bench_load

    return bench_load(instruct_config(overrides))


def generate(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Decoding with the architecture of `cfg_pretrain_instruct` and these overrides."""
    from lab.bench.generate import bench_generate

    return bench_generate(
        instruct_config(overrides),
        vocab_size=args.vocab_size,
        prompt=args.prompt,
        new_tokens=args.new_tokens,
        depth=args.depth,
        batch_sizes=args.batch,
    )


def distill(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """The parts of a distillation step; takes no overrides."""
    from lab.bench.distill import bench_distill

    if overrides:
        raise ValueError(f"unknown: {' '.join(overrides)}; distill takes only the flags that its --help lists")
    return bench_distill(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        layers=args.layers,
        rows=args.rows,
        positions=args.positions,
        topk=args.topk,
        steps=args.steps,
        device=args.device,
    )


def instruct_config(overrides: Sequence[str]) -> InstructConfig:
    return check(InstructConfig, composed("cfg_pretrain_instruct", overrides))
