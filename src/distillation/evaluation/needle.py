"""Needle in a haystack: how well a student finds again what it has read, by length and place, as one JSON object.

python -m src.distillation.evaluation.needle --config configs/train_direct.yaml --eval-niah-lengths 256 1024
"""

from collections.abc import Sequence

from engine.config.flags import FlagParser
from src.distillation.evaluation.options import NeedleConfig


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = FlagParser(NeedleConfig, str(__doc__)).read(argv)

    # Late, so that --help needs nothing but the options.
    from engine.entry import show, user_errors
    from src.distillation.evaluation.evaluate import needle_report

    with user_errors():
        show(needle_report(config))


if __name__ == "__main__":
    main()
