"""Train a student on a packed corpus: from a teacher (in this process, from a cache, on a server) or from text alone.

python -m src.distillation.scripts.train --config configs/train_direct.yaml
python -m src.distillation.scripts.train --config configs/train_direct.yaml --pretrain-ce-only --max-steps 10000
python -m src.distillation.scripts.train --config configs/train_direct.yaml --resume-from latest
torchrun --nproc-per-node 8 -m src.distillation.scripts.train --config configs/train_direct.yaml
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run by path, Python sees only this folder

from engine.entry import end_of_rank, show, user_errors


def main(argv: Sequence[str] | None = None) -> None:
    with end_of_rank(), user_errors():
        from engine.config.flags import FlagParser
        from src.distillation.config import DistillConfig

        parser = FlagParser(DistillConfig, str(__doc__))
        parser.add_argument("--dry-run", action="store_true", help="check config and data, tell what would be done")
        config, args = parser.read(argv)

        # Late, so that --help needs nothing but the options.
        from engine.run import train
        from src.distillation.run.job import DistillJob, dry_run

        show(dry_run(config) if args.dry_run else train(DistillJob(config)))


if __name__ == "__main__":
    main()
