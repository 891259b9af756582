"""Options of the architectures: what fits together, what follows from them, and that the files in config/ say them."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import ValidationError

from engine.config.registry import load_model_class
from models.config import ArchConfig
from models.recursive_reasoning.hrm import HierarchicalConfig
from models.recursive_reasoning.transformers_baseline import BaselineConfig
from models.recursive_reasoning.trm_hier6 import SixThoughtsConfig

FOLDER = Path(__file__).resolve().parents[2] / "config" / "arch"
SIZES = {"seq_len": 81, "vocab_size": 12, "hidden_size": 64, "num_heads": 4}
DEPTH = {"H_cycles": 3, "L_cycles": 6, "halt_max_steps": 16}


def make(config_class: type[ArchConfig] = ArchConfig, **options) -> ArchConfig:
    return config_class.model_validate(SIZES | DEPTH | options)


@pytest.mark.parametrize(
    ("config_class", "options", "told"),
    [
        (ArchConfig, {"causal": True, "mlp_t": True}, "causal=true and mlp_t=true"),
        (ArchConfig, {"num_heads": 100}, "num_heads=100 is more than hidden_size=64"),
        (ArchConfig, {"num_heads": 9}, r"even head size, found hidden_size 64 // num_heads 9 = 7"),
        (ArchConfig, {"puzzle_emb_len": 4}, "puzzle_emb_len=4 needs puzzle_emb_ndim > 0"),
        (ArchConfig, {"puzzle_emb_len": 2, "puzzle_emb_ndim": 200}, "does not fit 2 prefix .* puzzle_emb_len to 4"),
        (ArchConfig, {"grad_cycles": "some"}, "grad_cycles='some'.*last_cycle"),
        (ArchConfig, {"grad_cycles": 0}, "grad_cycles=0: at least one network call must carry gradient"),
        (ArchConfig, {"grad_cycles": -2}, "grad_cycles=-2: at least one network call must carry gradient"),
        (ArchConfig, {"grad_cycles": "0->all"}, "grad_cycles='0->all'.*at least one network call"),
        (ArchConfig, {"grad_cycles": "2->0"}, "grad_cycles='2->0'.*at least one network call"),
        (ArchConfig, {"supervise": "last"}, "supervise=last.*detach_between_steps=false and recursion=unrolled"),
        (ArchConfig, {"injection": "start"}, "injection=start.*recursion=unrolled"),
        (ArchConfig, {"prefix_mask": True}, "prefix_mask=true needs causal=true"),
        (ArchConfig, {"pos_encodings": "rope2d", "seq_len": 80}, "rope2d needs a square board, found 80 cells"),
        (ArchConfig, {"pos_encodings": "rope2d", "causal": True}, "rope2d.*causal=true"),
        (ArchConfig, {"pos_encodings": "rope2d", "mlp_t": True}, "rope2d and mlp_t=true exclude"),
        (ArchConfig, {"pos_encodings": "rope2d", "hidden_size": 40}, "rope2d.* 4 divides"),
        (ArchConfig, {"board_conv": 3, "seq_len": 80}, "board_conv=3 needs a square board, found 80 cells"),
        (ArchConfig, {"board_conv": 3, "causal": True}, "board_conv=3.*causal=true"),
        (ArchConfig, {"board_conv": 4}, "board_conv=4.*odd"),
        (ArchConfig, {"registers": 2, "causal": True}, "registers=2"),
        (HierarchicalConfig, {}, "hrm has a second network: set H_layers to 1 or more"),
        (BaselineConfig, {}, "transformers_baseline consists of the H network: set H_layers"),
        (SixThoughtsConfig, {"L_cycles": 7}, "six low-level latents, found L_cycles=7"),
        (SixThoughtsConfig, {"depth_curriculum": [{"until": 0.5, "L_cycles": 8}]}, "six .* latents, found L_cycles=8"),
    ],
)
def test_what_does_not_fit_together_is_refused(config_class, options, told):
    with pytest.raises(ValidationError, match=told):
        make(config_class, **options)


def test_all_misfits_are_told_at_once():
    with pytest.raises(ValidationError) as refused:
        make(causal=True, mlp_t=True, grad_cycles=0, puzzle_emb_len=3)
    assert all(word in str(refused.value) for word in ("mlp_t", "grad_cycles=0", "puzzle_emb_len=3"))


@pytest.mark.parametrize("options", [{"hiden_size": 4}, {"halt_max_steps": 0}, {"norm": "mid"}, {"causal": "maybe"}])
def test_typos_and_bad_values_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        make(**options)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 0),
        ({"puzzle_emb_ndim": 64}, 1),
        ({"puzzle_emb_ndim": 65}, 2),
        ({"puzzle_emb_ndim": 64, "puzzle_emb_len": 16}, 16),
    ],
)
def test_the_prefix_is_as_long_as_asked_or_as_needed(options, prefix):
    config = make(**options)
    assert (config.prefix_len, config.total_len) == (prefix, prefix + 81)


def test_head_sizes_may_be_odd_without_rotary_positions():
    assert make(num_heads=9, pos_encodings="learned").num_heads == 9
    assert make(num_heads=9, mlp_t=True).num_heads == 9


@pytest.mark.parametrize(
    ("grad_cycles", "at"),
    [
        ("last_cycle", {0.0: "last_cycle", 1.0: "last_cycle"}),
        (4, {0.0: 4, 0.3: 4}),
        ("2->all", {0.0: 2, 0.25: 12, 0.5: 21, 1.0: 21}),
        ("1->5", {0.0: 1, 0.25: 3, 0.6: 5}),
    ],
)
def test_the_gradient_can_start_shallow_and_grow(grad_cycles, at):
    config = make(grad_cycles=grad_cycles)
    assert {progress: config.depth_at(progress).grad_cycles for progress in at} == at


def test_the_recursion_can_start_shallow_and_grow():
    stages = [{"until": 0.25, "H_cycles": 1, "L_cycles": 2, "halt_max_steps": 4}, {"until": 0.5, "H_cycles": 2}]
    config = make(depth_curriculum=stages)
    assert [config.depth_at(progress)[:3] for progress in (0.0, 0.24, 0.25, 0.5, 1.0)] == [
        *[(1, 2, 4)] * 2,
        (2, 6, 16),
        *[(3, 6, 16)] * 2,
    ]
    for wrong in (stages[::-1], [stages[0], stages[0]]):
        with pytest.raises(ValidationError, match="depth_curriculum"):
            make(depth_curriculum=wrong)


def composed(name: str) -> dict[str, Any]:
    with initialize_config_dir(str(FOLDER.parent), version_base=None):
        found = OmegaConf.to_container(compose(f"arch/{name}"), resolve=True)
    assert isinstance(found, dict)
    return found["arch"]


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_every_arch_file_fits_its_class(name):
    options = composed(name)
    model_class, head_class = load_model_class(options.pop("name")), load_model_class(options.pop("loss")["name"])
    config = model_class.config_class.model_validate({"seq_len": 81, "vocab_size": 12} | options)
    head_class(model_class(config.model_copy(update={"hidden_size": 32, "num_heads": 2})))


def test_the_default_arch_is_that_of_the_paper():
    options = composed("trm")
    expected = {
        **{"hidden_size": 512, "num_heads": 8, "expansion": 4, "L_layers": 2, "H_cycles": 3, "L_cycles": 6},
        **{"halt_max_steps": 16, "halt_exploration_prob": 0.1, "no_ACT_continue": True, "forward_dtype": "bfloat16"},
        **{"puzzle_emb_ndim": 512, "puzzle_emb_len": 16, "pos_encodings": "rope", "mlp_t": False},
    }
    assert {key: options[key] for key in expected} == expected
