"""Perplexity of a student on a split of its corpus, as one JSON object; with the teacher also the distance from it.

python -m src.distillation.evaluation.perplexity --config configs/train_direct.yaml --split val
"""

from collections.abc import Sequence

from engine.config.flags import FlagParser
from src.distillation.evaluation.options import PerplexityConfig


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = FlagParser(PerplexityConfig, str(__doc__)).read(argv)

    # Late, so that --help needs nothing but the options.
    from engine.entry import end_of_rank, show, user_errors
    from src.distillation.evaluation.evaluate import perplexity_report

    with end_of_rank(), user_errors():
        show(perplexity_report(config))


if __name__ == "__main__":
    main()
