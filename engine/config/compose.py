"""Hydra's part: a config and its overrides as plain values."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engine.config.parse import ConfigError
from engine.config.schema import PretrainConfig, RunConfig
from engine.config.text import ChatConfig, InstructConfig

CONFIGS: dict[str, type[RunConfig]] = {
    "cfg_pretrain": PretrainConfig,
    "cfg_pretrain_instruct": InstructConfig,
    "cfg_chat": ChatConfig,
}
UNKNOWN_CHOICES = "unknown_choices"  # the key of values that `as_additions` could not pass on
CONFIG_DIR = Path(__file__).resolve().parents[2] / "config"


def composed(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra makes of a config and overrides."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    store_defaults()
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        data = OmegaConf.to_container(compose(config_name, as_additions(overrides)), resolve=True)
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


def resolved(hydra_config: Any) -> tuple[dict[str, Any], str, set[str]]:
    """The values that a `hydra.main` function was given, the name of the chosen architecture, and the options that were
    chosen by the command line, a recipe or a config of one's own, rather than left at their default."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        data = OmegaConf.to_container(hydra_config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).replace("\n", " ")]) from None
    assert isinstance(data, dict)
    hydra = HydraConfig.get()
    given = {override.lstrip("+").partition("=")[0] for override in hydra.overrides.task}
    files = [CONFIG_DIR / "recipe" / f"{recipe}.yaml"] if (recipe := hydra.runtime.choices.get("recipe")) else []
    if hydra.job.config_name not in CONFIGS:
        files += [Path(place.path) / f"{hydra.job.config_name}.yaml" for place in hydra.runtime.config_sources]
    given |= {str(key) for file in files if file.is_file() for key in OmegaConf.load(file)}
    return {str(key): value for key, value in data.items()}, hydra.runtime.choices.get("arch", "model"), given


def as_additions(arguments: Sequence[str]) -> list[str]:
    """Every `key=value` as `++key=value`, which Hydra accepts for keys that the YAML declares and for others alike, so
    that our own check can name the nearest known key; choices such as `arch=trm` stay.

    In place of a choice that does not exist stand the nearest one and a note for the check, which so finds what else is
    wrong too.
    """
    changed = []
    for argument in arguments:
        key, equals, value = argument.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if not equals or argument.startswith(("-", "~")) or key.startswith("hydra"):
            changed.append(argument)
        elif not (CONFIG_DIR / group).is_dir():
            changed.append("++" + argument.lstrip("+"))
        elif value == "null" or value in (known := choices(group)):
            changed.append(argument)
        else:
            changed += [f"{key}={name}" for name in get_close_matches(value, known, n=1)]
            value = value.strip("'").replace("'", "")  # as Hydra quotes it
            changed.append(f"++{UNKNOWN_CHOICES}.{group}='{value}'")
    return changed


def choices(group: str) -> list[str]:
    """What can be chosen, as in `arch=trm`."""
    return sorted(file.stem for file in (CONFIG_DIR / group).glob("*.yaml"))
