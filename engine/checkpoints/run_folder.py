"""The folder of a run: its name, its config, and the checkpoint to go on from."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.load import Checkpoint, latest_step, load_checkpoint
from engine.runtime.devices import Runtime
from engine.config.schema import RunConfig


@dataclass(frozen=True)
class RunFolder:
    """`checkpoints/<project>/<run>` and the config that is written into it before anything heavy happens."""

    path: Path
    project: str
    name: str
    config_yaml: str

    @classmethod
    def open(cls, config: RunConfig, default_project: str, arch_label: str, runtime: Runtime) -> "RunFolder":
        project = config.project_name or default_project
        root = Path("checkpoints") / project
        if config.checkpoint_path:
            path = Path(config.checkpoint_path)
        elif config.resume and not config.run_name:
            path = newest_run(root)
            tell(runtime, f"resume: run_name is not given, taking the newest run, {path}")
        else:
            name = config.run_name or (f"{arch_label}-{slug()}" if runtime.is_main else "")
            path = root / shared_text(name, runtime)
        config = config.model_copy(
            update={"project_name": project, "run_name": path.name, "checkpoint_path": str(path)}
        )
        config_yaml = to_yaml(config.model_dump(mode="json"))
        folder = cls(path, project, path.name, config_yaml)
        if runtime.is_main and not config.eval_only:
            if not config.resume and any(path.glob("step_*")):
                raise ValueError(
                    f"The run folder {path} holds checkpoints already. Go on with resume=true, or choose another run_name."
                )
            if not config.resume or not (path / "config.yaml").exists():
                folder.write_config()
        return folder

    def write_config(self) -> None:
        """At once in a new run; in a resumed one when the checkpoint fits, until then the former config stands."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(self.config_yaml, encoding="utf-8")


def newest_run(root: Path) -> Path:
    runs = sorted((p for p in root.glob("*") if p.is_dir() and any(p.glob("step_*"))), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise ValueError(
            f"resume=true: no run with a checkpoint in {root}. Give run_name=..., or start without resume."
        )
    return runs[-1]


def slug() -> str:
    from coolname import generate_slug

    return str(generate_slug(2))


def shared_text(text: str, runtime: Runtime) -> str:
    """Rank 0's text on every rank."""
    letters = torch.zeros(256, dtype=torch.uint8, device=runtime.device)
    encoded = text.encode()[:256]
    letters[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    runtime.broadcast_([letters])
    return bytes(letters.tolist()).rstrip(b"\0").decode()


def to_yaml(data: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(data))


def latest_checkpoint(path: Path, runtime: Runtime) -> Checkpoint | None:
    """The newest complete checkpoint of a run folder, the same on every rank, or None with a notice."""
    found = latest_step(path) if runtime.is_main else None
    name = shared_text("" if found is None else f"step_{found}", runtime)
    if not name:
        tell(runtime, f"resume: no checkpoint in {path} yet, starting from the beginning")
        return None
    return load_checkpoint(path / name, with_trainer=True)


def tell(runtime: Runtime, *lines: str) -> None:
    if runtime.is_main:
        for line in lines:
            print(line, file=sys.stderr)
