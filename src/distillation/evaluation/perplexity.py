"""Perplexity of a student on a split of its corpus, as one JSON object; with the teacher also the distance from it.

python -m src.distillation.evaluation.perplexity --config configs/train_direct.yaml --split val
"""

from collections.abc import Sequence

from engine.config.flags import FlagParser
from src.distillation.config import DistillConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = FlagParser(DistillConfig, str(__doc__))
    parser.add_argument("--split", choices=["train", "val"], default="val", help="val: what is held out")
    parser.add_argument("--checkpoint", help="default: the latest of output_dir, else a fresh student")
    parser.add_argument("--with-teacher", action="store_true", help="also divergence and agreement with the teacher")
    parser.add_argument("--rows", type=int, help="how many rows are read at most; default: all")
    config, args = parser.read(argv)
    if args.rows is not None and args.rows < 1:
        parser.error(f"--rows {args.rows}: at least 1 row is needed to measure anything")

    # Late, so that --help needs nothing but the options.
    from engine.entry import show, user_errors
    from src.distillation.evaluation.judge import judge as evaluate_student

    with user_errors():
        show(
            evaluate_student(
                config,
                split=args.split,
                checkpoint=args.checkpoint,
                with_teacher=args.with_teacher,
                rows=args.rows,
            )
        )


if __name__ == "__main__":
    main()
