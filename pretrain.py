"""Train a recursive model on puzzles.

python pretrain.py recipe=sudoku_4x4
python pretrain.py arch=trm data_paths="[data/arc1concept-aug-1000]" global_batch_size=768 ema=true
"""

import hydra
from omegaconf import DictConfig

from engine.entry import launch
from engine.run import pretrain


@hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
def main(config: DictConfig) -> None:
    pretrain(config)


if __name__ == "__main__":
    launch(main)
