"""Download the first corpus of mathematics and code: MetaMath, CodeSearchNet, APPS, MBPP. Ctrl-C safe; run it again to resume.

python data/download_missing_datasets.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from src.distillation.corpus.download import main_baseline

if __name__ == "__main__":
    main_baseline(Path(__file__).resolve().parent / "distillation")
