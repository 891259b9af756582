"""Distillation on the pretended device: every kind of teacher and target, every student, and the tuning of a teacher."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dataset.common import LoaderItem
from engine.train.evaluate import evaluate
from engine.train.network_optimizer import network_optimizer
from engine.train.optimizers import OptimizerSet
from engine.train.schedule import DecaySchedule
from models.losses.distill import Divergence
from models.retnet.model import RetNet
from src.distillation.config import SaddleOptions
from src.distillation.student.head import DistillHead
from src.distillation.student.saddle import PlateauController
from src.distillation.targets.signal import Teacher
from src.distillation.task import DistillTask
from src.distillation.teachers.cached import RecordingTeacher
from src.distillation.teachers.causal_lm import load_causal_lm
from src.distillation.teachers.direct import DirectTeacher
from src.distillation.tuning.lora import TunedTeacher, with_lora
from src.distillation.tuning.task import TeacherTask
from tests.distillation import cache_samples, teacher_samples
from tests.distillation.fake_server import serving
from tests.gpu.place import SIXTEEN_BITS, TINY_GRADIENTS, Place, case, from_loader, opened, resumed, text_run, train

VOCAB, LENGTH = 259, 64
COLD = Divergence(0.0, 2.0)


@cache
def root() -> Path:
    """A corpus, a teacher of it, and that one's answers on disk; made once a process."""
    folder = cache_samples.write_all(Path(tempfile.mkdtemp()))
    cache_samples.write_cache(folder, "--temperature", "2")
    return folder


@cache
def host_teacher() -> Any:
    return load_causal_lm(str(root() / "teacher"), dtype=torch.float32)


def direct(at: Place, **options: Any) -> DirectTeacher:
    model = load_causal_lm(str(root() / "teacher"), dtype=torch.float32).to(at.device)
    return DirectTeacher(model, vocab_size=VOCAB, temperatures=(1.0, 2.0), fingerprint="tiny", **({"k": 16} | options))


def items(count: int = 2, rows: int = 2) -> list[LoaderItem]:
    batches = [cache_samples.batch_of(root(), range(rows * n, rows * n + rows)) for n in range(count)]
    return [("train", batch, rows) for batch in batches]


def student(at: Place, **options: Any) -> RetNet:
    torch.manual_seed(1)
    sizes = {"seq_len": LENGTH, "vocab_size": VOCAB, "hidden_size": 32, "num_heads": 2, "H_layers": 1, "expansion": 1}
    return RetNet(sizes | {"forward_dtype": "float32", "tie_embeddings": True} | options)


def distilled(
    at: Place,
    teacher: Teacher | None,
    divergence: Divergence = COLD,
    *,
    model: Any = None,
    optimizer: str = "adam_atan2",
    micro_batches: int = 1,
    log_interval: int = 1,
    **settings: Any,
) -> Any:
    head = DistillHead(model or student(at), 0.3, divergence).to(at.device)
    task = DistillTask(head, at.runtime, teacher, seed=0, total_steps=9, micro_batches=micro_batches, **settings)
    network = network_optimizer(optimizer, head, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01)
    return opened(at, task, OptimizerSet(network, 1e-2, None, 0.0, DecaySchedule(1, 9, 0.1)), log_interval=log_interval)


DIRECT: dict[str, tuple[dict[str, Any], Divergence]] = {
    "likeliest ids, the rest in a bucket": ({}, COLD),
    "likeliest ids, renormalised": ({}, Divergence(0.0, 2.0, "renorm")),
    "likeliest ids, the rest dropped": ({}, Divergence(0.0, 2.0, "drop")),
    "reverse divergence": ({}, Divergence(1.0, 2.0)),
    "between both divergences": ({}, Divergence(0.5, 2.0)),
    "the whole distribution": ({"kind": "dense"}, COLD),
    "drawn ids": ({"kind": "sampled", "k": 8}, COLD),
}


for name, (options, divergence) in DIRECT.items():

    @case(f"distillation: {name}")
    def learns(at: Place, options: dict[str, Any] = options, divergence: Divergence = divergence) -> Any:
        return train(at, distilled(at, direct(at, **options), divergence), items())


@case("distillation: text alone")
def learns_alone(at: Place) -> Any:
    return train(at, distilled(at, None, checks_first_loss=True), items())


@case("distillation: answers on disk")
def learns_from_disk(at: Place) -> Any:
    return train(at, distilled(at, cache_samples.cached(root())), items())


@case("distillation: answers that are written to disk")
def learns_and_records(at: Place) -> Any:
    teacher = RecordingTeacher(direct(at), at.folder / "cache", cache_samples.manifest_of(root()))
    found = train(at, distilled(at, teacher), items())
    teacher.close()
    return found, cache_samples.cached(root(), cache_dir=at.folder / "cache").signal(items()[0][1]).columns()


@case("distillation: a server")
def learns_from_server(at: Place) -> Any:
    with serving(host_teacher()) as server:
        teacher = cache_samples.open_with(root(), "network", url=server.url, k=16, max_retries=1)
        found = train(at, distilled(at, teacher, Divergence()), items())
        teacher.close()
    return found


@case("distillation: a recursive student in micro-batches")
def teaches_recursion(at: Place) -> Any:
    run = {"dataset": {"source": "sample", "seq_len": LENGTH}}
    model = text_run(at, vocab_size=VOCAB, halt_policy="fixed", run=run).task.module.model
    return train(at, distilled(at, direct(at), model=model, micro_batches=2), items())


@case("distillation: Muon", SIXTEEN_BITS)
def learns_by_muon(at: Place) -> Any:
    return train(at, distilled(at, direct(at), optimizer="muon_hybrid"), items())


@case("distillation: a plateau is watched for")
def watches(at: Place) -> Any:
    controller = PlateauController(SaddleOptions.model_validate({"enabled": True, "patience_steps": 2}))
    return train(at, distilled(at, direct(at), controller=controller), items())


@case("distillation: evaluation")
def evaluates(at: Place) -> Any:
    run = distilled(at, direct(at))
    return evaluate(run.task, from_loader(at, items()), ["train"], at.runtime)


@case("distillation: saved and resumed")
def resumes(at: Place) -> Any:
    return resumed(at, lambda at: distilled(at, direct(at)), items(4), [("test", *items()[0][1:])])


def tuned(at: Place, *, adapter: bool) -> Any:
    model: Any = load_causal_lm(str(root() / "teacher"), dtype=torch.float32)
    torch.manual_seed(2)
    if adapter:
        model = with_lora(model, teacher_samples.options(root(), lora_dropout=0.0))
    teacher = TunedTeacher(model, adapter).to(at.device)
    task = TeacherTask(teacher, at.runtime, seed=0, micro_batches=2)
    network = network_optimizer("adamw", teacher, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01)
    return opened(at, task, OptimizerSet(network, 1e-2, None, 0.0, DecaySchedule(1, 9, 0.1)), average=None)


TUNED: dict[str, Callable[[Place], Any]] = {
    "an adapter": lambda at: train(at, tuned(at, adapter=True), items()),
    "the whole model": lambda at: train(at, tuned(at, adapter=False), items()),
    "evaluation": lambda at: evaluate(tuned(at, adapter=True).task, from_loader(at, items()), ["train"], at.runtime),
}
for name, run in TUNED.items():
    case(f"teacher: {name}", TINY_GRADIENTS)(run)
