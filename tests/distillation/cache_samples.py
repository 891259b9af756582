"""A small packed corpus, a tiny teacher for it, and how far two of its answers are apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.common import Batch
from models.losses.distill import UNUSED
from scripts.cache_teacher_logits import main
from src.distillation.config import TeacherOptions
from src.distillation.corpus.manifest import Manifest, load_manifest
from src.distillation.corpus.packed_rows import PackedRows
from src.distillation.targets.signal import Teacher, TeacherSignal
from src.distillation.teachers.open import open_teacher
from tests.distillation.teacher_samples import write_corpus, write_llama

VOCAB_SIZE = 259


def write_all(root: Path) -> Path:
    """`root/packed`, `root/tokenizer` and `root/teacher`, whose distributions are far from even."""
    write_corpus(root, count=60)
    write_llama(root / "teacher", initializer_range=0.4)
    return root


def manifest_of(root: Path) -> Manifest:
    return load_manifest(root / "packed")


def options(mode: str, **given: Any) -> TeacherOptions:
    """Of a teacher, under short names."""
    own_names = {"k": "teacher_topk", "record": "cache_logits"}
    own_names |= {name: name for name in ("cache_dir", "seed", "on_missing")}
    values = {own_names.get(name, f"teacher_{name}"): value for name, value in given.items()}
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return TeacherOptions.model_validate({"teacher_mode": mode, "teacher_model": None, "seed": 0} | texts)


def open_with(root: Path, mode: str, **changes: Any) -> Teacher:
    corpus = changes.pop("corpus", manifest_of(root))
    facts = corpus.tokenizer.model_copy(update=changes.pop("tokenizer", {}))
    beside = {name: changes.pop(name) for name in ("temperatures", "api_key") if name in changes}
    return open_teacher(options(mode, **changes), corpus.model_copy(update={"tokenizer": facts}), **beside)


def direct(root: Path, **changes: Any) -> Teacher:
    given: dict[str, Any] = {"model": root / "teacher", "k": 16}
    return open_with(root, "direct", **(given | changes))


def cached(root: Path, **changes: Any) -> Teacher:
    given: dict[str, Any] = {"cache_dir": root / "cache", "k": 16}
    return open_with(root, "cached", **(given | changes))


def write_cache(root: Path, *flags: str) -> None:
    """Run the program; later flags win."""
    common = ["--data-path", str(root / "packed"), "--output-dir", str(root / "cache"), "--topk", "16"]
    main([*common, "--teacher-model", str(root / "teacher"), "--batch-size", "3", "--shard-size", "8", *flags])


def batch_of(root: Path, members: Sequence[int], split: Any = "train") -> Batch:
    return PackedRows(root / "packed", split).batch(members, len(members))


def divergence(signal: TeacherSignal, temperature: float = 1.0, column: int = 0) -> float:
    """Mean KL from what is told, the rest of the mass in one bucket, to a fixed random student; drawn ids by their
    shares."""
    student = (torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(5)) * 2).double()
    log_q = (student / temperature).log_softmax(-1)
    logp = (
        signal.logprobs[signal.valid].double() / temperature - signal.log_norms[signal.valid][:, column, None].double()
    )
    if signal.ids is None:
        return float((logp.exp() * (logp - log_q)).sum(-1).mean())
    ids = signal.ids[signal.valid].long()
    used = ids != UNUSED
    q = log_q[ids.clamp(min=0)]
    if signal.shares is not None:
        shares = signal.shares[signal.valid].double()
        return float((shares * (logp - q) * used).sum(-1).mean())
    p = logp.exp() * used
    told = (p * torch.where(used, logp - q, 0.0)).sum(-1)
    rest_p, rest_q = 1 - p.sum(-1), 1 - (q.exp() * used).sum(-1)
    rest = torch.where(rest_p > 1e-9, rest_p * (rest_p.clamp(min=1e-9) / rest_q.clamp(min=1e-9)).log(), 0.0)
    return float((told + rest).mean())


def relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


def same_signal(found: TeacherSignal, expected: TeacherSignal) -> bool:
    left, right = found.columns(), expected.columns()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def whole_distributions(root: Path, batch: Batch) -> Tensor:
    """Log-probabilities (B, L, V) of each document read by itself; zero in padding."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(root / "teacher").eval()
    result = torch.zeros(*batch["inputs"].shape, VOCAB_SIZE)
    for row, documents in enumerate(batch["documents"]):
        for number in documents.unique().tolist():
            if number >= 0:
                places = documents == number
                with torch.no_grad():
                    logits = model(batch["inputs"][row, places][None].long(), use_cache=False).logits[0]
                result[row, places] = logits.float().log_softmax(-1)
    return result
