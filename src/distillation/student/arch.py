"""Which architecture a student is: a file of config/arch, the size that was chosen, and the options laid over it."""

from typing import Any

from engine.config.check import arch_problems, conversation_problems
from engine.config.compose import CONFIG_DIR, composed
from engine.config.parse import ConfigError, nearest
from engine.config.registry import load_model_class
from models.act import ActModel
from models.retnet.config import preset
from src.distillation.config import DistillConfig

RETNET = "retnet"


def student_arch(config: DistillConfig) -> dict[str, Any]:
    """All options of the student's architecture; otherwise one error with every problem."""
    arch = _of_file("retnet_tiny" if config.student == RETNET else config.student)
    if config.student == RETNET and config.model_variant is not None:
        arch |= preset(config.model_variant)
    arch["loss"] = {"name": "losses@TextLossHead", "loss_type": "softmax_cross_entropy"}
    arch["forward_dtype"] = "bfloat16" if config.use_bf16 else "float32"
    problems = []
    if config.gradient_checkpointing:
        model_class: type[ActModel] = load_model_class(arch["name"])
        if "gradient_checkpointing" in model_class.config_class.model_fields:
            arch["gradient_checkpointing"] = True
        else:
            problems.append(f"gradient_checkpointing=true is for student=retnet, found {config.student}. Leave it out")
    arch |= config.student_overrides
    options = {key: value for key, value in arch.items() if key != "loss"}
    problems += [text.replace("arch.", "student_overrides.") for text in arch_problems(options)]
    problems += [text.replace("arch.", "student_overrides.") for text in conversation_problems(options)]
    if arch.get("recursion") != "unrolled":
        problems.append(
            f"student={config.student} has recursion={arch.get('recursion')}: a student takes all supervision steps of a "
            "batch at once. Add recursion=unrolled halt_policy=sampled to student_overrides"
        )
    if arch.get("prefix_mask"):
        problems.append("student_overrides.prefix_mask: a corpus of texts has no prompts. Set it to false")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return arch


def _of_file(name: str) -> dict[str, Any]:
    known = sorted(file.stem for file in (CONFIG_DIR / "arch").glob("*.yaml"))
    if name not in known:
        hint = nearest(name, [RETNET, *known])
        raise ConfigError([f"student={name!r} is none of {RETNET}, {', '.join(known)}{hint}"])
    arch: dict[str, Any] = composed("cfg_pretrain_instruct", [f"arch={name}"])["arch"]
    return arch
