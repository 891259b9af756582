"""What kind of run a config is of, and what to type about it."""

import shlex
from pathlib import Path
from typing import Any, Literal

Kind = Literal["puzzles", "instruct", "chat", "distillation", "tuning", "-"]
UNKNOWN: Kind = "-"
KEYS: dict[str, Kind] = {
    "teacher_mode": "distillation",
    "lora_rank": "tuning",
    "data_paths": "puzzles",
    "dataset": "instruct",
}


def kind_of(config: dict[str, Any]) -> Kind:
    if config.get("dataset_type") == "chat":
        return "chat"
    return next((kind for key, kind in KEYS.items() if key in config), UNKNOWN)


def arch_of(config: dict[str, Any]) -> str:
    """The file of the architecture, or what a distillation calls its student and a tuning its teacher."""
    arch = config.get("arch")
    if isinstance(arch, dict):
        return str(arch.get("name", UNKNOWN)).replace(":", "@").partition("@")[0].rpartition(".")[2]
    return str(config.get("student") or config.get("teacher_model") or UNKNOWN)


def data_of(config: dict[str, Any]) -> str:
    """What was trained on, in words."""
    data = config.get("dataset")
    if isinstance(data, dict):
        if data.get("source") in ("sample", "composition"):
            return f"made-up conversations of this project (dataset.source={data['source']})"
        stages = data.get("stages")
        if isinstance(stages, list):
            return "instructions of " + ", then ".join(str(stage.get("repo")) for stage in stages)
        place = data.get("data_dir") or data.get("repo") or UNKNOWN
        return f"instructions in {place} (dataset.source={data.get('source')})"
    paths = config.get("data_paths") or [config.get("train_data_path") or config.get("data_path") or UNKNOWN]
    return ", ".join(map(str, paths))


def commands(config: dict[str, Any], run_dir: Path, resume: str) -> list[str]:
    """Lines for a shell: how the run is resumed, evaluated, talked to and exported."""
    kind, run, name = kind_of(config), shlex.quote(str(run_dir)), shlex.quote(f"exported/{run_dir.name}")
    resuming = f"checkpoint_path={run_dir} resume=true"
    evaluated = {
        "puzzles": resume.replace(resuming, f"load_checkpoint={run_dir} eval_only=true"),
        "chat": resume.replace(resuming, f"load_checkpoint={run_dir} eval_only=true"),
        "instruct": f"python inference_instruct.py --checkpoint {run}",
    }
    talk = f'python generate_instruct.py --checkpoint {run} --message "..."'
    lines = {
        "resume, to train on": resume,
        "evaluate": evaluated.get(kind, ""),
        "talk": {
            "chat": f"python generate.py --checkpoint {run} --interactive",
            "instruct": talk,
            "distillation": talk,
        }.get(kind, ""),
        "serve": f"python serve.py --checkpoint {run}" if kind in ("chat", "instruct", "distillation") else "",
        "export": f"python scripts/export.py --checkpoint {run} --output {name}" if kind != "tuning" else "",
    }
    width = max(len(line) for line in lines.values())
    return [f"{line.ljust(min(width, 100))}  # {what}" for what, line in lines.items() if line]
