"""What `scripts/evaluate_lm.py` takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.command_line import Bounded, flag, part
from engine.generate.options import NEWEST, OpenOptions, known_depths


@dataclass(frozen=True)
class HarnessOptions(Bounded):
    """Which checkpoint takes which tasks, and how."""

    opening: OpenOptions = part(
        OpenOptions(newest=True),
        only=["checkpoint", "tokenizer_path", "device"],
        checkpoint={"required": True, "help": NEWEST},
    )
    tasks: str = flag("", "names of lm-eval, or patterns, with commas between them", required=True, metavar="NAME,NAME")
    include_path: str | None = flag(None, "a directory with tasks of your own", metavar="DIR")
    depth: Sequence[int] = flag(
        (),
        "a column for each of these numbers of supervision steps, such as 1,2,4,8; default: as trained",
        type=known_depths,
        metavar="N,N",
    )
    num_fewshot: int | None = flag(None, "examples before each question; default: the task's own", at_least=0, type=int)
    limit: float | None = flag(None, "at most so many questions of a task; below 1 a share of them", type=float)
    apply_chat_template: bool = flag(False, "ask in turns, as the checkpoint was trained", action="store_true")
    batch_size: int = flag(16, "texts that are read at once", at_least=1, type=int)
    output: str | None = flag(None, "all results as JSON", metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit={self.limit}: expected a number of questions, or a share of them below 1.")
