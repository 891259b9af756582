"""Train a recursive model on SlimOrca conversations.

python pretrain_instruct.py dataset.subset_size=64 global_batch_size=8
python pretrain_instruct.py dataset.data_dir=data/slimorca_full dataset.subset_size=null global_batch_size=48 epochs=1
"""

import hydra
from omegaconf import DictConfig

from engine.entry import launch
from engine.run import pretrain_instruct


@hydra.main(config_path="config", config_name="cfg_pretrain_instruct", version_base=None)
def main(config: DictConfig) -> None:
    pretrain_instruct(config)


if __name__ == "__main__":
    launch(main)
