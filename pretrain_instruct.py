"""Train a recursive model on SlimOrca conversations.

python pretrain_instruct.py dataset.subset_size=64 global_batch_size=8
python pretrain_instruct.py dataset.data_dir=data/slimorca_full dataset.subset_size=null global_batch_size=48 epochs=1
"""

from typing import Any

from engine.entry import launch, show, user_errors


def main(config: Any) -> None:
    from engine.build.asked import instruct_job
    from engine.build.dry_run import dry_run  # late, so that --help needs no torch
    from engine.run import train

    with user_errors():
        job = instruct_job(config)
        show(dry_run(job) if job.config.dry_run else train(job))


if __name__ == "__main__":
    launch(main, "cfg_pretrain_instruct")
