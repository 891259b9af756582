"""Every recipe composes under the commands that its header tells, and those of published results are what was published."""

import re
import shlex
from pathlib import Path

import pytest

from engine.config.check import check
from engine.config.compose import CONFIG_DIR, composed
from engine.config.schema import PretrainConfig
from engine.config.text import InstructConfig

RECIPES = sorted((CONFIG_DIR / "recipe").glob("*.yaml"))
DOORS = {
    "pretrain.py": ("cfg_pretrain", PretrainConfig),
    "pretrain_instruct.py": ("cfg_pretrain_instruct", InstructConfig),
}
SUDOKU = "epochs=50000 eval_interval=5000 lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0"
# The reference's own commands (SamsungSAILMontreal/TinyRecursiveModels, README.md).
PUBLISHED = {
    "sudoku_mlp": f"data_paths=[data/sudoku-extreme-1k-aug-1000] evaluators=[] {SUDOKU} arch.mlp_t=True "
    "arch.pos_encodings=none arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=6 ema=True",
    "sudoku_att": f"data_paths=[data/sudoku-extreme-1k-aug-1000] evaluators=[] {SUDOKU} "
    "arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=6 ema=True",
    "maze": f"data_paths=[data/maze-30x30-hard-1k] evaluators=[] {SUDOKU} "
    "arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=4 ema=True",
    "arc1": "data_paths=[data/arc1concept-aug-1000] arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=4 ema=True",
    "arc2": "data_paths=[data/arc2concept-aug-1000] arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=4 ema=True",
}
OURS = ("best_metric",)  # keys that the reference does not have


def training_commands(recipe: Path) -> list[list[str]]:
    """Words of the training commands in a recipe's header."""
    header = [line.removeprefix("#").strip() for line in recipe.read_text().splitlines() if line.startswith("#")]
    return [shlex.split(line) for line in header if re.search(r"\bpretrain(_instruct)?\.py\b", line)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_command_of_a_recipe_makes_a_sound_config(recipe):
    commands = training_commands(recipe) or [["pretrain.py", f"recipe={recipe.stem}"]]
    assert any(f"recipe={recipe.stem}" in words for words in commands), "the header speaks of another recipe"
    for words in commands:
        (door,) = [word for word in words if word in DOORS]
        config_name, config_class = DOORS[door]
        overrides = words[words.index(door) + 1 :]
        config = check(config_class, composed(config_name, overrides))
        told = composed(config_name, [word for word in overrides if not word.startswith("recipe=")])
        assert config != check(config_class, told), "the recipe changes something"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_are_the_reference_s_commands(name):
    recipe = composed("cfg_pretrain", ["arch=trm", f"recipe={name}"])
    reference = composed("cfg_pretrain", ["arch=trm", *PUBLISHED[name].split()])
    assert {k: v for k, v in recipe.items() if k not in OURS} == {k: v for k, v in reference.items() if k not in OURS}
