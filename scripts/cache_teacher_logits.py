"""Ask a teacher about every row of a packed corpus and keep the answers, for training with teacher_mode=cached.

    python scripts/cache_teacher_logits.py --data-path data/distillation_preprocessed --output-dir data/teacher_cache \\
        --teacher-model meta-llama/Llama-3.2-1B-Instruct --topk 64

Whatever ends the program, the same command resumes where it stood, to the same bytes, on any number of ranks:

    torchrun --nproc-per-node 8 scripts/cache_teacher_logits.py ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from engine.entry import end_of_rank, user_errors


def main(argv: Sequence[str] | None = None) -> None:
    with end_of_rank(), user_errors():
        from engine.config.flags import FlagParser
        from src.distillation.cache.options import CacheOptions

        options, _ = FlagParser(CacheOptions, str(__doc__)).read(argv)

        # Late, so that --help needs nothing but the options.
        from src.distillation.run.cache_corpus import run

        run(options)


if __name__ == "__main__":
    main()
