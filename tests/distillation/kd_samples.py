"""A law of token sequences, a tiny Llama that has learnt it, and students that learn from it or from a few texts alone."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.train.network_optimizer import network_optimizer
from engine.train.optimizers import OptimizerSet
from engine.train.schedule import DecaySchedule
from models.losses.distill import Divergence
from models.losses.text import Supervision
from models.retnet.model import RetNet
from src.distillation.student.head import DistillHead
from src.distillation.student.transfer import init_from_teacher
from src.distillation.targets.signal import TeacherSignal
from src.distillation.teachers.direct import DirectTeacher

VOCAB, LENGTH, TOPICS, WIDTH = 48, 48, 4, 64
TEXTS, HELD_OUT, ROWS = 192, 128, 16


@cache
def law() -> Tensor:
    """(topics, V, V): after each token some dozen others are likely, which ones depends on the topic of the text."""
    generator = torch.Generator().manual_seed(11)
    return (2.5 * torch.randn(TOPICS, VOCAB, VOCAB, generator=generator)).softmax(-1)


def texts(count: int, seed: int) -> Tensor:
    """(count, LENGTH + 1) ids."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randint(TOPICS, (count,), generator=generator)
    ids = [torch.randint(VOCAB, (count,), generator=generator)]
    for _ in range(LENGTH):
        ids.append(law()[topics, ids[-1]].multinomial(1, generator=generator)[:, 0])
    return torch.stack(ids, dim=1)


def batch_of(ids: Tensor) -> dict[str, Tensor]:
    rows = len(ids)
    return {
        "inputs": ids[:, :-1].int(),
        "labels": ids[:, 1:].long(),
        "positions": torch.arange(LENGTH).expand(rows, -1),
        "documents": torch.zeros(rows, LENGTH, dtype=torch.int32),
        "row_id": torch.arange(rows),
    }


@cache
def teacher_model(steps: int, tied: bool = False) -> Any:
    """Sees new texts in every step, so it learns the law and not some texts of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
            tie_word_embeddings=tied,
        )
    )
    optimizer = network_optimizer("adamw", model, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    optimizers = OptimizerSet(optimizer, 3e-3, None, 0.0, DecaySchedule(20, steps, 0.05))
    for step in range(1, steps + 1):
        ids = texts(32, seed=1000 + step)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizers.step(step)
        optimizers.zero_grad()
    return model.eval()


@cache
def said(model: Any, seed: int, count: int, kind: str, k: int, temperature: float) -> TeacherSignal:
    """What a teacher says of texts, for one temperature."""
    temperatures = tuple(sorted({1.0, temperature}))
    teacher = DirectTeacher(model, vocab_size=VOCAB, kind=kind, k=k, temperatures=temperatures)  # type: ignore[arg-type]
    signal = teacher.signal(batch_of(texts(count, seed)))
    return replace(signal, log_norms=signal.log_norms[..., [teacher.facts.column(temperature)]])


def fresh_student(seed: int, **options: Any) -> RetNet:
    torch.manual_seed(seed)
    config = {
        **{"seq_len": LENGTH, "vocab_size": VOCAB, "hidden_size": WIDTH, "num_heads": 4, "H_layers": 2},
        **{"expansion": 6, "value_expansion": 1, "forward_dtype": "float32", "tie_embeddings": False},
    }
    return RetNet(config | options)


@cache
def taught(
    steps: int,
    *,
    teacher_steps: int = 400,
    tied: bool = False,
    seed: int = 1,
    k: int | None = 16,
    temperature: float = 1.0,
    tail: str = "bucket",
    kind: str = "topk",
    parts: tuple[str, ...] = (),
    optimizer: str = "adamw",
    lr: float = 3e-3,
) -> dict[str, float]:
    """A student after so many steps on the same few texts, with the teacher or (k=None) without: how far it is from the
    teacher on others."""
    teacher = teacher_model(teacher_steps, tied)
    student = fresh_student(seed, tie_embeddings=tied)
    if parts:
        init_from_teacher(student, teacher, parts)
    head = DistillHead(student, 0.0, Divergence(0.0, temperature, tail))  # type: ignore[arg-type]
    own = network_optimizer(optimizer, head, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    optimizers = OptimizerSet(own, lr, None, 0.0, DecaySchedule(10, max(steps, 11), 0.05))
    ids = texts(TEXTS, seed=7)
    order = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        numbers = torch.randint(TEXTS, (ROWS,), generator=order)
        batch = batch_of(ids[numbers])
        at = Supervision.of(batch)
        targets = None
        if k is not None:
            targets = said(teacher, 7, TEXTS, kind, k, temperature).rows(numbers.tolist()).targets(at.places, 0)
        weights = at.weights("token", torch.tensor(float(len(at.places))))
        head.train_on(batch, at, weights, 1, targets)
        optimizers.step(step)
        optimizers.zero_grad()
    return evaluated(student, teacher)


def evaluated(student: RetNet, teacher: Any) -> dict[str, float]:
    batch = batch_of(texts(HELD_OUT, seed=8))
    at = Supervision.of(batch)
    targets = said(teacher, 8, HELD_OUT, "dense", VOCAB, 1.0).targets(at.places, 0)
    sums, _ = DistillHead(student, 0.0, Divergence()).evaluate_on(batch, at, 1, targets)
    count = float(sums["taught_tokens"])
    return {
        "kl": float(sums["kd_loss"]) / count,
        "agreement": float(sums["agreed"]) / count,
        "ce": float(sums["ce_loss"]) / float(sums["tokens"]),
    }
