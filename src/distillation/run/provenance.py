"""Where a student comes from: one line for every start and resume of its run, and which options may change in between."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from engine.config.parse import ConfigError
from engine.runtime.code import code_version

PROVENANCE_FILE = "provenance.jsonl"
META_KEY = "distill"  # in the meta.json of a checkpoint

# Options with which a checkpoint was made and cannot be resumed under others.
FIXED = ("student", "model_variant", "student_overrides", "init_from_teacher", "optimizer_type", "seed")
# What says where to write or what to print, and is no part of how the student became what it is.
INCIDENTAL = (
    "output_dir",
    "run_name",
    "resume_from",
    "log_interval",
    "tracker",
    "use_wandb",
    "wandb_project",
    "wandb_mode",
    "num_workers",
    "save_interval",
    "keep_last_n",
    "verify_data",
)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    """Option -> [what it was, what it is], for those that differ and are not incidental."""
    keys = sorted((old.keys() | new.keys()) - set(INCIDENTAL))
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def check_changes(old: dict[str, Any], new: dict[str, Any], rows_per_step: int) -> None:
    """Refuse facts of a run under which the checkpoint with the old ones cannot be resumed."""
    before, after = old["config"], new["config"]
    changes = differences(before, after)
    problems = [
        f"{key}={after[key]!r}, but the checkpoint was trained with {before.get(key)!r}. Leave it as it was, or start "
        "from scratch without --resume-from"
        for key in FIXED
        if key in changes
    ]
    rows = before["physical_batch_size"] * before["gradient_accumulation_steps"]
    if rows != rows_per_step:
        problems.append(
            f"physical_batch_size x gradient_accumulation_steps is {rows_per_step}, but the checkpoint was trained with "
            f"{rows} rows a step. Split the same product in another way if memory is short"
        )
    if old["tokenizer"] != new["tokenizer"]:
        problems.append(
            f"the corpus was made with another tokenizer (SHA-256 {new['tokenizer'][:12]}) than that of the checkpoint "
            f"({old['tokenizer'][:12]}). Preprocess the corpus with the same one"
        )
    if problems:
        raise ConfigError(problems)


def record_start(run_dir: Path, step: int, old: dict[str, Any] | None, new: dict[str, Any], source: str | None) -> str:
    """Append the line of this start or resume; returns it in words."""
    changes = {} if old is None else differences(old["config"], new["config"])
    version = code_version()
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "from_mode": None if old is None else old["mode"],
        "to_mode": new["mode"],
        "changes": changes,
        "resumed_from": source,
        "git_commit": version["commit"] and version["commit"] + ("+" if version["commit_is_dirty"] else ""),
        "data_fingerprint": new["corpus"],
        "former_data_fingerprint": None if old is None else old["corpus"],
        "tokenizer_fingerprint": new["tokenizer"],
        "teacher_fingerprint": new["teacher"],
        "former_teacher_fingerprint": None if old is None else old["teacher"],
    }
    with open(run_dir / PROVENANCE_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if old is None:
        return f"a new run in mode {new['mode']}"
    moved = f"mode {old['mode']} -> {new['mode']}" if old["mode"] != new["mode"] else f"mode {new['mode']}"
    told = "".join(f"; {key}: {was} -> {now}" for key, (was, now) in changes.items())
    return f"resumed at step {step}, {moved}{told}"


def last_mode(run_dir: Path) -> str | None:
    """The mode of the newest run in a directory; None if there was none."""
    file = run_dir / PROVENANCE_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    try:
        return str(json.loads(lines[-1])["to_mode"]) if lines else None
    except (ValueError, LookupError, TypeError):
        return None
