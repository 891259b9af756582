"""Tune a teacher on the corpus that it will teach, with a LoRA adapter or as a whole.

python scripts/finetune_teacher.py --config configs/teacher_ft.yaml --ram-disk
torchrun --nproc-per-node 8 scripts/finetune_teacher.py --config configs/teacher_ft.yaml --ram-disk
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from engine.entry import end_of_rank, show, user_errors


def main(argv: Sequence[str] | None = None) -> None:
    with end_of_rank(), user_errors():
        from engine.config.flags import FlagParser
        from src.distillation.tuning.config import TeacherFtConfig

        config, _ = FlagParser(TeacherFtConfig, str(__doc__)).read(argv)

        # Late, so that --help needs nothing but the options.
        from engine.run import train
        from src.distillation.tuning.job import TuneTeacherJob

        show(train(TuneTeacherJob(config)))


if __name__ == "__main__":
    main()
