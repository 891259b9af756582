"""The sub-commands of scripts/bench.py: each composes its config from overrides and returns one JSON object."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from engine.config.check import check
from engine.config.compose import composed
from engine.config.schema import PretrainConfig
from engine.config.text import InstructConfig


def train(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Training steps under these overrides: of puzzles, or of text if the architecture is one for text."""
    from lab.bench.puzzles import bench_puzzles
    from lab.bench.text import bench_text

    overrides = [*overrides, f"global_batch_size={args.rows}"]
    puzzles = composed("cfg_pretrain", ["evaluators=[]", *overrides])
    if not puzzles["arch"]["loss"]["name"].endswith("TextLossHead"):
        return bench_puzzles(check(PretrainConfig, puzzles), args.positions, args.vocab_size, args.steps, args.profile)
    config = instruct_config([*overrides, f"dataset.seq_len={args.positions}"])
    return bench_text(config, args.vocab_size, args.depth, args.steps, args.compare, args.profile)


def load(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Loading of the corpus that `cfg_pretrain_instruct` and these overrides name."""
    from lab.bench.text import bench_load

    return bench_load(instruct_config(overrides))


def generate(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Decoding with the architecture of `cfg_pretrain_instruct` and these overrides."""
    from lab.bench.generate import bench_generate

    sizes = (args.prompt, args.new_tokens, args.depth, args.batch)
    return bench_generate(instruct_config(overrides), args.vocab_size, *sizes)


def distill(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """The parts of a distillation step; there are no overrides."""
    from lab.bench.distill import bench_distill

    return bench_distill(**{name: value for name, value in vars(args).items() if name != "command"})


def gpu(args: Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """All of it on this machine's GPU; there are no overrides."""
    from lab.bench.gpu import bench_gpu

    return bench_gpu(args.output, args.seconds, args.device, args.small, args.only)


def instruct_config(overrides: Sequence[str]) -> InstructConfig:
    return check(InstructConfig, composed("cfg_pretrain_instruct", overrides))
