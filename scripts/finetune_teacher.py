"""Tune a teacher on the corpus that it will teach.

python scripts/finetune_teacher.py --config configs/teacher_ft.yaml --ram-disk
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from src.distillation.tuning.run import main

if __name__ == "__main__":
    main()
