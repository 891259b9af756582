"""The output folder of a teacher's tuning: what may be begun in it, what is gone on with, how it went so far."""

import json
import re
from pathlib import Path
from typing import Any

from engine.checkpoints.load import Checkpoint, latest_step, load_checkpoint
from engine.config.flags import yaml_options
from engine.train.loop import Run
from engine.train.tracking import METRICS_FILE
from src.distillation.tuning.config import TeacherFtConfig

OTHER_NAME = re.compile(r"checkpoint-(\d+)")  # what a step folder is called elsewhere
LEARNT_WITH = (
    *("teacher_model", "init_config", "method", "lora_rank", "lora_alpha", "target_modules"),
    *("optimizer_type", "physical_batch_size", "gradient_accumulation_steps", "seed"),
)


def check_output_dir(output_dir: Path, resume_from: str | None) -> None:
    """Refuse to write where another run has left its checkpoints."""
    goes_on = resume_from is not None and step_folder(resume_from).resolve().parent == output_dir.resolve()
    if not goes_on and (step := latest_step(output_dir)) is not None:
        raise ValueError(
            f"{output_dir} holds checkpoints already, the last one of step {step}. Go on with "
            f"--resume-from {output_dir}, or choose another --output-dir."
        )


def checkpoint_to_resume(config: TeacherFtConfig, corpus_fingerprint: str) -> Checkpoint | None:
    """What resume_from names, if it can be gone on with under this config and with this corpus."""
    if config.resume_from is None:
        return None
    checkpoint = load_checkpoint(step_folder(config.resume_from), with_trainer=True)
    then = yaml_options(checkpoint.config_yaml or "", where=str(checkpoint.path))
    now = config.model_dump(mode="json")
    changed = [f"{key} was {then.get(key)} and is {now[key]}" for key in LEARNT_WITH if then.get(key) != now[key]]
    if checkpoint.meta.get("corpus") != corpus_fingerprint:
        changed.append(f"the corpus is not the one it was trained on ({config.data_path})")
    if changed:
        raise ValueError(
            f"{checkpoint.path} cannot be gone on with: {'; '.join(changed)}. Set them back, or begin anew in another "
            "--output-dir."
        )
    return checkpoint


def step_folder(given: str) -> Path:
    """A step folder by its own name, step_<N>, or as checkpoint-<N>; of a run folder the one saved last."""
    path = Path(given)
    if (number := OTHER_NAME.fullmatch(path.name)) and not path.exists():
        return path.with_name(f"step_{number[1]}")
    step = latest_step(path) if path.is_dir() else None
    return path if step is None else path / f"step_{step}"


def losses_so_far(run: Run) -> list[float]:
    """The held-out losses of all evaluations up to now, that of the untuned model first.

    What is not a number counts as infinite.
    """
    base: Any = run.task.state_dict()["base_loss"]
    lines = (json.loads(line) for line in (run.run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines())
    found = (line[f"{name}/loss"] for line in lines for name in run.data.eval_sets if f"{name}/loss" in line)
    return [base, *(float("inf") if loss is None else loss for loss in found)]
