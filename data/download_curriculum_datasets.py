"""Download the curriculum for distillation, or a category of it. Ctrl-C safe; run it again to resume.

python data/download_curriculum_datasets.py --dry-run
python data/download_curriculum_datasets.py --category code
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from src.distillation.corpus.download import main_curriculum

if __name__ == "__main__":
    main_curriculum(Path(__file__).resolve().parent / "distillation")
