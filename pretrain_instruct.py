"""Train a recursive model on SlimOrca conversations.

python pretrain_instruct.py dataset.subset_size=64 global_batch_size=8
python pretrain_instruct.py dataset.data_dir=data/slimorca_full dataset.subset_size=null global_batch_size=48 epochs=1
"""

import hydra
from omegaconf import DictConfig

from engine.entry import launch, show, user_errors


@hydra.main(config_path="config", config_name="cfg_pretrain_instruct", version_base=None)
def main(config: DictConfig) -> None:
    from engine.build.dry_run import dry_run  # late, so that --help needs no torch
    from engine.build.jobs import instruct_job
    from engine.run import train

    with user_errors():
        job = instruct_job(config)
        show(dry_run(job) if job.config.dry_run else train(job))


if __name__ == "__main__":
    launch(main)
