"""Checks a whole config at the border: the run's own options and those of every class that it names."""

import inspect
from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import BaseModel

from engine.config.compose import UNKNOWN_CHOICES, choices
from engine.config.parse import ConfigError, nearest, parse
from engine.config.registry import load_model_class
from engine.config.schema import LossConfig, RunConfig
from engine.config.text import TextConfig
from models.act import ActModel
from models.config import ArchConfig
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead

GIVEN_BY_DATA = {"batch_size": 1, "seq_len": 1, "vocab_size": 1, "num_puzzle_identifiers": 1}
ONLY_TEXT = ["recursion", "halt_policy", "halt_mean_steps", "halt_delta"]
ONLY_TEXT += ["detach_between_steps", "prefix_mask", "supervise", "injection"]
ONLY_PUZZLES = ["label_smoothing", "halt_loss_weight"]
Config = TypeVar("Config", bound=RunConfig)
GIVEN_TO_EVALUATORS = {"data_path", "eval_metadata"}
ONLY_SAMPLE = ("dataset.sample_size", "dataset.sample_tasks")


def check(config_class: type[Config], data: dict[str, Any], given: Collection[str] = ()) -> Config:
    """The typed config; otherwise ONE error with every problem of the run's options and of the architecture's.

    `given` names options that somebody chose, of which none may be without effect.
    """
    unknown = data.get(UNKNOWN_CHOICES, {})
    config, problems = parse(config_class, {key: value for key, value in data.items() if key != UNKNOWN_CHOICES})
    problems += [choice_problem(group, name) for group, name in unknown.items()]
    arch = data.get("arch")
    if isinstance(arch, dict):
        problems += arch_problems({key: value for key, value in arch.items() if key != "loss"})
        head_class = TextLossHead if issubclass(config_class, TextConfig) else ACTLossHead
        problems += class_problems(arch.get("loss"), "models.", head_class)
        is_text = issubclass(config_class, TextConfig)
        problems += conversation_problems(arch) if is_text else text_problems(arch)
        problems += depth_problems(arch, data.get("eval"))
    problems += sample_problems(data.get("dataset"), given)
    evaluators = data.get("evaluators")
    for choice in evaluators if isinstance(evaluators, list) else []:
        problems += class_problems(choice, "evaluators.", object) or evaluator_problems(choice)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def choice_problem(group: str, name: str) -> str:
    """That there is no such architecture or recipe."""
    known = choices(group)
    return f"{group}={name}: expected one of {', '.join(known)}{nearest(name, known)}"


def sample_problems(dataset: Any, given: Collection[str]) -> list[str]:
    """Which chosen options of the built-in conversations another source would ignore; recipes may hold them idle."""
    source = dataset.get("source") if isinstance(dataset, dict) else None
    if source == "sample":
        return []
    return [
        f"{name} changes nothing with dataset.source={source}. Set dataset.source=sample, or leave it out"
        for name in ONLY_SAMPLE
        if name in given
    ]


def class_problems(choice: Any, prefix: str, expected: type) -> list[str]:
    """Why the class that `choice` names cannot be taken."""
    name = choice.get("name") if isinstance(choice, dict) else None
    if not isinstance(name, str):
        return []
    try:
        found = load_model_class(name, prefix)
    except ValueError as error:
        return [str(error)]
    return [] if issubclass(found, expected) else [f"{name!r} is not an {expected.__name__}. Choose another class"]


def evaluator_problems(choice: Any) -> list[str]:
    """Which options its class does not know."""
    if not isinstance(choice, dict) or not isinstance(choice.get("name"), str):
        return []
    known = inspect.signature(load_model_class(choice["name"], "evaluators.")).parameters.keys() - GIVEN_TO_EVALUATORS
    unknown = choice.keys() - known - {"name"}
    return [f"evaluators.{key}: unknown key of {choice['name']}{nearest(key, known)}" for key in sorted(unknown)]


def text_problems(arch: dict[str, Any]) -> list[str]:
    """Which options mean something to text only; puzzles would ignore them."""
    return [
        f"arch.{key}={value!r} is for text; puzzles take {usual!r}"
        for key, value, usual in unusual(arch, ONLY_TEXT, ArchConfig)
    ]


def unusual(given: Any, keys: list[str], model: type[BaseModel]) -> list[tuple[str, Any, Any]]:
    """Those of the keys that are given another value than usual, with both values."""
    given = given if isinstance(given, dict) else {}
    found = [(key, given.get(key), model.model_fields[key].default) for key in keys if key in given]
    return [(key, value, usual) for key, value, usual in found if value != usual]


def conversation_problems(arch: dict[str, Any]) -> list[str]:
    """What makes no sense on text: to read the answer that is to be predicted, or options that nothing would look at."""
    problems = []
    if arch.get("causal") is False:
        problems.append("arch.causal=false: the model would read the answers. Set arch.causal=true")
    if arch.get("puzzle_emb_ndim"):
        problems.append("arch.puzzle_emb_ndim: conversations are not puzzles with identifiers. Set it to 0")
    if arch.get("chains", 1) != 1:
        problems.append(f"arch.chains={arch['chains']!r}: several chains are for puzzles alone. Set it to 1")
    if is_supervise_idle(arch):
        problems.append(
            "arch.supervise=cycle: a loss after every H cycle with gradient, but with arch.grad_cycles=last_cycle only the "
            "last one has any. Set arch.grad_cycles=all (or a number of calls), or arch.supervise=step"
        )
    problems += [
        f"arch.loss.{key}={value!r} is for puzzles; text takes {usual!r}"
        for key, value, usual in unusual(arch.get("loss"), ONLY_PUZZLES, LossConfig)
    ]
    is_carry = arch.get("recursion", "carry") == "carry"
    if not is_carry and arch.get("halt_policy", "learned") == "learned":
        problems.append("arch.halt_policy=learned needs arch.recursion=carry. Set that, or sampled or fixed")
    if is_carry and arch.get("detach_between_steps") is False:
        problems.append("arch.detach_between_steps=false: a lasting carry has no gradient. Set arch.recursion=unrolled")
    return problems


def depth_problems(arch: dict[str, Any], evaluation: Any) -> list[str]:
    """Whether an evaluation is to take supervision steps that the architecture does not have."""
    depth = evaluation.get("halt_max_steps") if isinstance(evaluation, dict) else None
    if class_problems(arch, "models.", ActModel) or not isinstance(arch.get("name"), str) or depth in (None, 1):
        return []
    model_class: type[ActModel] = load_model_class(arch["name"])
    if not model_class.config_class.reads_once:
        return []
    return [f"eval.halt_max_steps={depth}: {arch['name']} reads its text once, in order. Set it to null"]


def is_supervise_idle(arch: dict[str, Any]) -> bool:
    """Whether supervise=cycle changes nothing: the last cycle is supervised in any case."""
    grad_cycles = arch.get("grad_cycles", ArchConfig.model_fields["grad_cycles"].default)
    return arch.get("supervise") == "cycle" and grad_cycles == "last_cycle"


def arch_problems(arch: dict[str, Any]) -> list[str]:
    """What the model's own config class says of its options, before any data is known."""
    problems = class_problems(arch, "models.", ActModel)
    if problems or not isinstance(arch.get("name"), str):
        return problems
    model_class: type[ActModel] = load_model_class(arch["name"])
    options = {key: value for key, value in arch.items() if key != "name"}
    chosen = sorted(GIVEN_BY_DATA.keys() & options.keys())
    problems += [f"arch.{key}: comes from the data and cannot be chosen. Leave it out" for key in chosen]
    return problems + parse(model_class.config_class, options | GIVEN_BY_DATA, prefix="arch.")[1]
