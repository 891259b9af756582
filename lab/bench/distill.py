"""Measures a step of distillation on this machine, part by part, and how a student's decoding grows with its text."""

import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from dataset.common import IGNORE_LABEL_ID, Batch
from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions
from engine.runtime.devices import Runtime, start_runtime
from engine.train.speed import timed
from models.kv_cache import cast_for_reading
from models.layers import weights_cast_once
from models.losses.text import Supervision
from models.retnet.model import RetentionMemory
from src.distillation.config import DistillConfig
from src.distillation.corpus.manifest import Manifest, Shard, SplitFacts, TokenizerFacts
from src.distillation.run.build import build_student, student_optimizers
from src.distillation.student.arch import student_arch
from src.distillation.student.head import DistillHead
from src.distillation.targets.signal import Teacher
from src.distillation.teachers.cached import CachedTeacher, RecordingTeacher
from src.distillation.teachers.direct import DirectTeacher
from src.distillation.teachers.packed_attention import packed_hidden

DECODED_AT = (64, 2048)  # positions at which a token is timed
TIMED_TOKENS = 16  # at each of them


def bench_distill(
    *, vocab_size: int, hidden_size: int, layers: int, rows: int, positions: int, topk: int, steps: int, device: str
) -> dict[str, Any]:
    """Fresh models of these sizes, one document a row; medians over `steps` steps, in milliseconds."""
    config = DistillConfig.model_validate(
        {
            "model_variant": "tiny",
            "student_overrides": {
                "hidden_size": hidden_size,
                "num_heads": max(1, hidden_size // 64),
                "H_layers": layers,
            },
            "max_seq_length": positions,
            "physical_batch_size": rows,
            "gradient_accumulation_steps": 1,
            "teacher_topk": topk,
            "device": device,
        }
    )
    runtime = start_runtime(device, False, config.seed)
    tokenizer = TokenizerFacts(name="none", sha256="none", vocab_size=vocab_size, bos_id=1, eos_id=2, pad_id=0)
    head = build_student(config, student_arch(config), tokenizer, runtime)
    teacher = DirectTeacher(
        random_teacher(vocab_size, hidden_size, layers, positions).to(runtime.device), vocab_size=vocab_size, k=topk
    )
    batch = runtime.to_device(synthetic_batch(rows, positions, vocab_size))
    result: dict[str, Any] = {
        "device": str(runtime.device),
        "dtype": head.model.config.forward_dtype,
        "teacher_parameters": sum(p.numel() for p in teacher.model.parameters()),
        "student_parameters": sum(p.numel() for p in head.parameters()),
        "rows": rows,
        "positions": positions,
        "vocab_size": vocab_size,
        "topk": topk,
    }
    whole = Shard(
        file="none",
        source="none",
        first_row_id=0,
        rows=rows,
        documents=rows,
        tokens=rows * positions,
        bytes=1,
        sha256="none",
    )
    split = SplitFacts(rows=rows, documents=rows, tokens=rows * positions, shards=[whole])
    corpus = Manifest(tokenizer=tokenizer, max_seq_length=positions, val_fraction=0, splits={"train": split})
    with tempfile.TemporaryDirectory() as place:
        recording = RecordingTeacher(teacher, Path(place), corpus)
        recording.signal(batch)
        recording.close()
        cached = CachedTeacher(config.model_copy(update={"cache_dir": place}), corpus)
        size = sum(file.stat().st_size for file in Path(place).iterdir())
        result["cache_bytes_per_token"] = round(size / (rows * (positions - 1)), 1)
        for name, asked in (("direct", teacher), ("cached", cached)):
            print(f"timing steps with a {name} teacher", file=sys.stderr)
            result[name] = step_parts(config, head, asked, batch, runtime, steps)
    print("timing the student's decoding", file=sys.stderr)
    result["decoding"] = decoding(head, runtime)
    return result


def random_teacher(vocab_size: int, hidden_size: int, layers: int, positions: int) -> Any:
    from src.distillation.teachers.causal_lm import import_transformers

    transformers = import_transformers()
    heads = max(1, hidden_size // 64)
    sizes = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=positions,
    )
    return transformers.LlamaForCausalLM(sizes)


def synthetic_batch(rows: int, positions: int, vocab_size: int) -> Batch:
    """Random tokens, one document a row."""
    inputs = torch.randint(3, vocab_size, (rows, positions), generator=torch.Generator().manual_seed(0))
    labels = inputs.roll(-1, 1)
    labels[:, -1] = IGNORE_LABEL_ID
    return {
        "inputs": inputs.int(),
        "labels": labels.int(),
        "positions": torch.arange(positions, dtype=torch.int32).expand(rows, -1).contiguous(),
        "documents": torch.zeros(rows, positions, dtype=torch.int32),
        "row_id": torch.arange(rows),
    }


def step_parts(
    config: DistillConfig, head: DistillHead, teacher: Teacher, batch: Batch, runtime: Runtime, steps: int
) -> dict[str, float]:
    """Milliseconds of each part of a step; the loss includes the gradients of hidden states and head."""
    optimizers = student_optimizers(config, head, None)
    core, at = head.model.inner, Supervision.of(batch)
    weights = at.weights("token", torch.tensor(float(len(at.places)), device=runtime.device))
    times: dict[str, list[float]] = defaultdict(list)
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            times.clear()
        if isinstance(teacher, DirectTeacher):
            with timed(times["teacher_forward"], runtime), torch.no_grad():
                packed_hidden(teacher.model, batch)
        with timed(times["signal"], runtime), torch.no_grad():
            targets = teacher.signal(batch).targets(at.places, teacher.facts.column(1.0))
        with weights_cast_once(core, core.dtype):
            with timed(times["student_forward"], runtime):
                ((_, answers),) = core.unroll(batch, 1)
            with timed(times["loss"], runtime):
                loss, _, _ = head.score(answers, at, weights, targets)
            with timed(times["backward"], runtime):
                loss.backward()
        with timed(times["optimizer"], runtime):
            optimizers.step(step + 1)
        optimizers.zero_grad()
    parts = {name: milliseconds(seconds) for name, seconds in times.items()}
    if "teacher_forward" in parts:  # asking for the signal begins with the same forward pass
        parts["teacher_topk"] = round(parts.pop("signal") - parts["teacher_forward"], 1)
    else:
        parts["cache_read"] = parts.pop("signal")
    return parts | {"total": round(sum(parts.values()), 1)}


def decoding(head: DistillHead, runtime: Runtime) -> dict[str, Any]:
    """Milliseconds of a token after texts of two lengths, and the bytes of the state that each leaves."""
    model = head.model.eval()
    cast_for_reading(model)
    found: dict[str, Any] = {}
    for length in DECODED_AT:
        prompt = torch.randint(3, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
        run = Decoding(model, [prompt.tolist()], DecodeOptions(), max_new_tokens=TIMED_TOKENS + 1)
        tokens = iter(run)
        next(tokens)  # reads the prompt
        assert isinstance(run.memory, RetentionMemory)
        times: list[float] = []
        for _ in range(TIMED_TOKENS):
            with timed(times, runtime):
                next(tokens)
        found[str(length)] = {"ms_per_token": milliseconds(times), "state_bytes": run.memory.bytes_per_row}
    early, late = (found[str(length)]["ms_per_token"] for length in DECODED_AT)
    return found | {"growth": round(late / early, 2)}


def milliseconds(seconds: list[float]) -> float:
    """The median."""
    return round(1000 * statistics.median(seconds), 1)
