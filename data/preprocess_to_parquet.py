"""Tokenize files of JSON lines and pack them into parquet shards with a manifest.

    python data/preprocess_to_parquet.py --input data/distillation --output data/distillation_preprocessed \\
        --recursive --skip-existing --max-seq-length 8192

In parts, on as many machines as there are, and then joined to the very files of one run:

    python data/preprocess_to_parquet.py --part 3/8 ...
    python data/preprocess_to_parquet.py --join ...

Each line is an object with a 'text', 'messages', or 'prompt' and 'response'.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from engine.entry import user_errors


def main(argv: Sequence[str] | None = None) -> None:
    kept = "the files that were finished are kept, the unfinished one was removed."
    with user_errors(if_interrupted=f"{kept} Run the same command with --skip-existing to resume."):
        from engine.config.flags import FlagParser
        from src.distillation.corpus.options import PreprocessOptions

        options, _ = FlagParser(PreprocessOptions, str(__doc__)).read(argv)

        # Late, so that --help needs nothing but the options.
        from src.distillation.corpus.preprocess import preprocess

        print(preprocess(options))


if __name__ == "__main__":
    main()
