"""The options of every program that opens a checkpoint of text, each with its default, flag and help."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from engine.config.command_line import Bounded, flag, part

Mode = Literal["exact", "recompute"]
ExitKind = Literal["kl", "margin", "head"]

MAX_DEPTH = 4096  # every supervision step of a token has its own cache
SEEDS = range(-(2**63), 2**64)  # what torch.Generator takes
NEWEST = "step or run folder (of several that match, the newest), export, or owner/name on the Hub"
REMOVED_MODE = (
    "mode=last_step was removed: its greedy answers equalled those of exact for only 46 to 51 % of the questions "
    "(docs/generation.md). Leave --mode out, or choose exact."
)


@dataclass(frozen=True)
class OpenOptions:
    """Which checkpoint is opened, and with what in place of its own config, tokenizer and device."""

    checkpoint: str | None = flag(
        None, "step or run folder (its best, else latest), export, file, or owner/name on the Hub"
    )
    project_name: str = flag("SlimOrca-ACT", "with --run-name, instead of --checkpoint")
    run_name: str | None = flag(None)
    newest: bool = False  # a pattern may match several checkpoints, of which the newest is taken
    tokenizer_path: str | None = flag(None, "another tokenizer than the checkpoint's own")
    config_name: str = flag("cfg_pretrain_instruct", "for a checkpoint without a config")
    overrides: Sequence[str] = flag((), "key=value changes of the config", nargs="*")
    device: str | None = flag(None, choices=["auto", "cuda", "mps", "cpu"])

    @property
    def path(self) -> str:
        if self.checkpoint is not None:
            return self.checkpoint
        if self.run_name is None:
            raise ValueError("Name the checkpoint: --checkpoint <folder or file>, or --run-name <run>.")
        return str(Path("checkpoints") / self.project_name / self.run_name)


@dataclass(frozen=True)
class SamplingOptions(Bounded):
    """Filters in the order in which they act; temperature 0 takes the likeliest token, whatever the other filters."""

    repetition_penalty: float = flag(1.0, type=float)
    temperature: float = flag(0.0, "0 takes the likeliest token", at_least=0, type=float)
    top_k: int | None = flag(None, at_least=1, type=int)
    top_p: float | None = flag(None, type=float)
    min_p: float | None = flag(None, type=float)
    seed: int = flag(0, type=int)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value}: expected more than 0 and at most 1.")
        if self.temperature == math.inf:
            raise ValueError("temperature=inf: expected a number from 0 (greedy) up.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: expected a number above 0 (1 is none).")
        if self.seed not in SEEDS:
            raise ValueError(f"seed={self.seed}: expected a whole number from {SEEDS.start} to {SEEDS.stop - 1}.")


@dataclass(frozen=True)
class ExitRule(Bounded):
    """When a token may leave the recursion early; each token by itself, whatever else is in the batch.

    `kl`: the step changed the distribution by less than the threshold. `margin`: the likeliest token leads the second
    by at least it. `head`: the halting head says with at least this probability that one more step brings nothing.
    """

    kind: ExitKind | Literal["none"] = flag(
        "none", "leave early when sure", flags=["--exit"], choices=["none", *get_args(ExitKind)]
    )
    threshold: float | None = flag(  # None: the one that was calibrated on the checkpoint
        None, "default: that of scripts/calibrate_exit.py", at_least=0, flags=["--exit-threshold"], type=float
    )

    def __post_init__(self) -> None:
        if self.kind not in ("none", *get_args(ExitKind)):
            raise ValueError(f"exit rule {self.kind!r}: expected one of none, {', '.join(get_args(ExitKind))}.")
        if self.kind == "none" and self.threshold is not None:
            raise ValueError("--exit-threshold needs a rule to belong to: --exit kl, margin or head.")
        super().__post_init__()


class UnknownWordError(argparse.ArgumentTypeError, ValueError):
    """A fault of the caller that argparse reports in its own words too."""


def split_flag() -> Any:
    """For programs that evaluate a checkpoint on the corpus it was trained on."""
    return flag(False, "another ratio, seed or corpus than in training; counts the overlap", action="store_true")


def known_mode(text: str) -> str:
    """The mode of this name; any other is an error."""
    if text not in get_args(Mode):
        raise UnknownWordError(REMOVED_MODE if text == "last_step" else f"mode={text}: expected exact or recompute.")
    return text


def known_depth(text: str) -> int | Literal["auto"]:
    """A number of supervision steps, or `auto`."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise UnknownWordError(f"depth={text}: expected a number of supervision steps, or auto.") from None


def known_depths(text: str) -> tuple[int, ...]:
    """Numbers of supervision steps with commas between them."""
    depths = {int(number) for number in text.split(",") if number.isdecimal()}
    if len(depths) < len(set(text.split(","))) or not all(1 <= depth <= MAX_DEPTH for depth in depths):
        raise UnknownWordError(f"depths={text}: expected numbers from 1 to {MAX_DEPTH}, such as 1,2,4,8.")
    return tuple(sorted(depths))


@dataclass(frozen=True)
class DecodeOptions(Bounded):
    """How tokens are computed and chosen."""

    sampling: SamplingOptions = part(SamplingOptions())
    depth: int | Literal["auto"] | None = flag(
        None,
        "supervision steps of every token, also more than trained; auto: by the checkpoint's own calibrated exit rule; "
        "default: as trained",
        at_least=1,
        type=known_depth,
        metavar="N|auto",
    )
    compile: bool = flag(  # pays on CUDA, where one position is all launches and hardly any work
        False, "compile the step of a token: slow to begin, pays on CUDA", action="store_true"
    )
    exit: ExitRule = part(ExitRule())
    mode: Mode = flag("exact", "recompute keeps no cache", type=known_mode, metavar="{exact,recompute}")
    num_top: int = 0  # likeliest alternatives that are reported with each token

    def __post_init__(self) -> None:
        super().__post_init__()
        known_mode(self.mode)
        if isinstance(self.depth, int) and self.depth > MAX_DEPTH:
            raise ValueError(f"depth={self.depth}: expected at most {MAX_DEPTH} supervision steps.")
        leaves = "--depth auto" if self.depth == "auto" else f"--exit {self.exit.kind}"
        if leaves != "--exit none" and self.mode == "recompute":
            raise ValueError(f"{leaves}: mode=recompute takes every step. Use mode=exact, or a number of steps.")
        if self.depth == "auto" and self.exit.kind != "none":
            raise ValueError(f"--depth auto chooses the exit rule itself. Leave --exit {self.exit.kind} out, or auto.")


@dataclass(frozen=True)
class ReplyOptions(Bounded):
    """How a conversation is answered."""

    max_tokens: int | None = flag(None, "default: half of the window", at_least=1, flags=["--max-new-tokens"], type=int)
    stop: Sequence[str] = flag((), "text or special token that ends a reply; repeatable", action="append")
    truncate: bool = flag(False, "shorten a message that does not fit the window", action="store_true")
    decode: DecodeOptions = part(DecodeOptions())

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.stop):
            raise ValueError("A stop text is empty: expected at least one character, or the name of a special token.")


SAMPLING_FLAGS = [option.name for option in fields(SamplingOptions)]
REPLY_FLAGS = ["max_tokens", "depth", "compile", "kind", "threshold"]
CHAT_REPLY = ReplyOptions(decode=DecodeOptions(SamplingOptions(temperature=0.7)))


@dataclass(frozen=True)
class InstructOptions(Bounded):
    """What `generate_instruct.py` takes."""

    opening: OpenOptions = part(OpenOptions())
    message: str | None = flag(None, "the text to answer", flags=["-m", "--message"])
    message_file: str | None = flag(None, "many texts, one a line; - is standard input")
    system_message: str | None = flag(None, "system prompt; default: one of SlimOrca's, '' for none")
    batch_size: int = flag(16, "messages answered at once", at_least=1, type=int)
    reply: ReplyOptions = part(ReplyOptions(), max_tokens={"flags": ["--max-output-tokens"]})
    stream: bool = flag(True, "print while it is generated", action=argparse.BooleanOptionalAction)
    json: bool = flag(False, "one JSON object a message", action="store_true")
    verbose: bool = flag(
        False, "every token's alternatives, to standard error", flags=["-V", "--verbose"], action="store_true"
    )


@dataclass(frozen=True)
class ChatOptions:
    """What `generate.py` takes."""

    opening: OpenOptions = part(
        OpenOptions(newest=True), only=["checkpoint", "device"], checkpoint={"required": True, "help": NEWEST}
    )
    prompt: str | None = flag(None, "one message to answer", is_choice=True)
    interactive: bool = flag(False, "a conversation", is_choice=True, action="store_true")
    system: str | None = flag(None, "system prompt")
    reply: ReplyOptions = part(CHAT_REPLY, only=SAMPLING_FLAGS + REPLY_FLAGS)
    stream: bool = flag(True, "print while it is generated", action=argparse.BooleanOptionalAction)


@dataclass(frozen=True)
class ServeOptions(Bounded):
    """What `serve.py` takes; how to answer holds unless a request asks otherwise."""

    opening: OpenOptions = part(
        OpenOptions(newest=True), only=["checkpoint", "device"], checkpoint={"required": True, "help": NEWEST}
    )
    host: str = flag("127.0.0.1", "another than the loopback opens the server to others")
    port: int = flag(8000, "0 takes a free one", type=int)
    usual_temperature: float | None = flag(
        None,
        "default: 0.7 for a chat model, 0 (the likeliest token) for one of instructions",
        at_least=0,
        flags=["--temperature"],
        metavar="TEMPERATURE",
        type=float,
    )
    reply: ReplyOptions = part(ReplyOptions(), only=REPLY_FLAGS)
    answers_at_once: int = flag(16, "rows of the running batch; further requests wait", at_least=1, type=int)
    max_waiting: int = flag(256, "requests that may wait; a further one gets status 503", at_least=0, type=int)
    api_key: str | None = flag(None, "that requests must carry; default: the environment variable TRM_API_KEY")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.host:
            raise ValueError("--host is empty. Name an address of this machine; 0.0.0.0 stands for all of them.")


@dataclass(frozen=True)
class CalibrateOptions(Bounded):
    """What `scripts/calibrate_exit.py` takes."""

    opening: OpenOptions = part(
        OpenOptions(),
        only=["checkpoint", "overrides"],
        checkpoint={"required": True, "help": "run folder or step folder"},
    )
    max_loss_increase: float = flag(0.01, "in nats a token, on held-out data", at_least=0, type=float)
    conversations: int = flag(256, "to fit on, and as many to evaluate on", at_least=1, type=int)
    allow_other_split: bool = split_flag()


@dataclass(frozen=True)
class BigramOptions:
    """What `scripts/bigram_baseline.py` takes."""

    opening: OpenOptions = part(OpenOptions(), only=["checkpoint", "overrides"], checkpoint={"required": True})
    allow_other_split: bool = split_flag()


@dataclass(frozen=True)
class InferenceOptions(Bounded):
    """What `inference_instruct.py` takes."""

    opening: OpenOptions = part(
        OpenOptions(), only=["checkpoint", "project_name", "run_name", "tokenizer_path", "config_name", "overrides"]
    )
    split: str = flag("test", choices=("train", "test"))
    allow_other_split: bool = split_flag()
    save_outputs: Sequence[str] = flag((), "tensors to save, such as preds inputs labels", nargs="*", metavar="NAME")
    output_dir: str | None = flag(None, "default: inference_<split> next to the step folder")
    data_dir: str | None = flag(None, "default: where the checkpoint was trained")
    subset_size: int | None = flag(None, "at most so many examples of the split", type=int)
    seq_len: int | None = flag(None, type=int)
    batch_size: int | None = flag(None, "rows of a batch", type=int)
    max_batches: int | None = flag(None, "stop after so many batches", at_least=1, type=int)
    depths: Sequence[int] = flag(
        (),
        "evaluate after so many supervision steps, such as 1,2,4,8, also more than trained; default: after each",
        type=known_depths,
        metavar="N,N",
    )

    @property
    def config_changes(self) -> list[str]:
        """The flags that stand for keys of the config."""
        keys = {
            "dataset.data_dir": self.data_dir,
            "dataset.subset_size": self.subset_size,
            "dataset.test_size": self.subset_size,
            "dataset.seq_len": self.seq_len,
            "global_batch_size": self.batch_size,
            "eval.halt_max_steps": max(self.depths, default=None),
        }
        return [f"{key}={value}" for key, value in keys.items() if value is not None]
