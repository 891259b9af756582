"""Tokenize files of JSON lines and pack them into parquet shards with a manifest.

    python data/preprocess_to_parquet.py --input data/distillation --output data/distillation_preprocessed \\
        --recursive --skip-existing --max-seq-length 8192
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from src.distillation.corpus.preprocess import main

if __name__ == "__main__":
    main()
