"""Hydra's part: a config and its overrides as plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engine.config.parse import ConfigError
from engine.config.schema import ChatConfig, InstructConfig, PretrainConfig, RunConfig

CONFIGS: dict[str, type[RunConfig]] = {
    "cfg_pretrain": PretrainConfig,
    "cfg_pretrain_instruct": InstructConfig,
    "cfg_chat": ChatConfig,
}
CONFIG_DIR = Path(__file__).resolve().parents[2] / "config"


def composed(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra makes of a config and overrides."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    store_defaults()
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        data = OmegaConf.to_container(compose(config_name, [as_addition(o) for o in overrides]), resolve=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def store_defaults() -> None:
    """Tell Hydra the defaults of our options, so that the YAML files hold only what differs from them."""
    from hydra.core.config_store import ConfigStore

    for config_name, config_class in CONFIGS.items():
        fields = {name: field for name, field in config_class.model_fields.items() if not field.is_required()}
        values = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
        node = {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in values.items()}
        ConfigStore.instance().store(name=f"{config_name}_defaults", node=node)


def resolved(hydra_config: Any) -> tuple[dict[str, Any], str]:
    """The values that a `hydra.main` function was given, and the name of the chosen architecture."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        data = OmegaConf.to_container(hydra_config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).replace("\n", " ")]) from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}, HydraConfig.get().runtime.choices.get("arch", "model")


def as_addition(argument: str) -> str:
    """`key=value` as `++key=value`, which Hydra accepts for keys that the YAML declares and for others alike, so that
    our own check can name the nearest known key; choices such as `arch=trm` stay."""
    key, equals, _ = argument.lstrip("+").partition("=")
    is_choice = (CONFIG_DIR / key.partition("@")[0]).is_dir()
    if not equals or argument.startswith(("-", "~")) or is_choice or key.startswith("hydra"):
        return argument
    return "++" + argument.lstrip("+")
