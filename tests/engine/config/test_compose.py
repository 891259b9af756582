"""Hydra's configs: their resolved values are the recorded ones, and no default stands in YAML as well as in a model."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from engine.build.asked import chat_config
from engine.config.check import check
from engine.config.compose import CONFIG_DIR, CONFIGS, composed
from engine.config.parse import ConfigError

RECORDED = json.loads((Path(__file__).parents[2] / "fixtures" / "hydra_configs.json").read_text())


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def resolved(config_name: str, words: list[str]) -> dict[str, Any]:
    """Every option by its path; without any where the combination is refused."""
    data = composed(config_name, words)
    try:
        config = chat_config(data | {"seq_len": 64}) if config_name == "cfg_chat" else check(CONFIGS[config_name], data)
    except ConfigError:
        return {}
    return dict(flat(config.model_dump(mode="json")))


@pytest.mark.parametrize("config_name", CONFIGS)
def test_resolved_values_are_the_recorded_ones(config_name: str) -> None:
    recorded = RECORDED[config_name]
    usual = resolved(config_name, [])
    assert usual == recorded["usual"]
    for words, changes in recorded["changes"].items():
        found = resolved(config_name, [words])
        assert {key: value for key, value in found.items() if usual.get(key) != value} == changes, words


@pytest.mark.parametrize("config_name", CONFIGS)
def test_the_yaml_holds_only_what_differs_from_the_model(config_name: str) -> None:
    written = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml"))
    assert isinstance(written, dict)
    fields = CONFIGS[config_name].model_fields
    twice = [
        key
        for key, value in written.items()
        if key in fields
        and not fields[key].is_required()
        and fields[key].get_default(call_default_factory=True) == value
    ]
    assert twice == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["arch=trm_tny", "lr=-1"], ["arch=trm_tny.*did you mean trm_tiny", "lr: .*-1"]),
        (["recipe=sudoku", "arch=nothing", "epochz=3"], ["recipe=sudoku.*sudoku_mlp", "arch=nothing.*hrm", "epochs"]),
        (["arch='it\\'s'"], ["arch=it.s"]),
    ],
)
def test_a_choice_that_does_not_exist_is_refused_with_all_else_that_is_wrong(words: list[str], told: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        check(CONFIGS["cfg_pretrain"], composed("cfg_pretrain", words))
    for pattern in told:
        assert any(re.search(pattern, problem) for problem in refusal.value.problems), refusal.value


def test_an_option_is_accepted_with_and_without_a_plus() -> None:
    plain = composed("cfg_pretrain", ["run_name=x", "eval.rollouts=3"])
    assert composed("cfg_pretrain", ["+run_name=x", "+eval.rollouts=3"]) == plain
    assert (plain["run_name"], plain["eval"]["rollouts"]) == ("x", 3)
