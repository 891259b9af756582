"""A causal model of Hugging Face in this process as the teacher.

B rows, L positions, D hidden, V vocabulary.
"""

import sys
from typing import Any, Literal

import torch
from torch import Tensor

from dataset.common import Batch
from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.targets.signal import Kind, TeacherFacts, TeacherSignal, log_norms_of, predicted_places
from src.distillation.targets.topk import Answers, blank_signal, drawn, likeliest, offsets_of, put_answers
from src.distillation.teachers.causal_lm import load_causal_lm
from src.distillation.teachers.files import (
    adapter_files,
    files_fingerprint,
    model_files,
    note_of_other_pieces,
    weights_fingerprint,
)
from src.distillation.teachers.packed_attention import check_packable, head_of, packed_hidden

CHUNK_ELEMENTS = 2**24  # of float32: 64 MiB, some 130 positions of a vocabulary of 128,000

DType = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DirectTeacher:
    """Asks `model`, whose ids from `vocab_size` on, if it has more, are not counted in.

    Documents that share a row do not see each other. The whole distribution exists for a chunk of positions only,
    but where `kind` is dense.
    """

    def __init__(
        self,
        model: Any,
        *,
        vocab_size: int,
        kind: Kind = "topk",
        k: int = 64,
        temperatures: tuple[float, ...] = (1.0,),
        seed: int = 0,
        fingerprint: str | None = None,
        chunk_elements: int = CHUNK_ELEMENTS,
    ) -> None:
        _check_vocabulary(head_of(model).shape[0], vocab_size, kind, k)
        self.model = model.eval().requires_grad_(False)
        self.facts = TeacherFacts(
            vocab_size=vocab_size,
            kind=kind,
            k=vocab_size if kind == "dense" else k,
            temperatures=temperatures,
            fingerprint=fingerprint or weights_fingerprint(model),
        )
        self._seed = seed
        self._chunk = max(1, chunk_elements // vocab_size)
        self._checked_length = 0  # the longest rows that the model is known to read rightly

    @torch.no_grad()
    def signal(self, batch: Batch) -> TeacherSignal:
        asked_from, device = batch["inputs"].device, head_of(self.model).device
        batch = {name: batch[name].to(device) for name in ("inputs", "positions", "documents", "row_id")}
        length = batch["inputs"].shape[1]
        if length > self._checked_length:
            check_packable(self.model, length)
            self._checked_length = length
        valid = predicted_places(batch["documents"])
        told = blank_signal(self.facts, valid)
        places = valid.flatten().nonzero().squeeze(-1)
        if len(places):
            hidden = packed_hidden(self.model, batch).flatten(0, 1)  # (B * L, D)
            for part in places.split(self._chunk):
                logprobs = self._logprobs(hidden[part])
                answers = self._choose(logprobs, batch["row_id"][part // length], part % length)
                put_answers(told, part, answers, log_norms_of(logprobs, self.facts.temperatures))
        return told.to(asked_from)

    def close(self) -> None:
        """Nothing is being written, and the model goes with this object."""

    def _logprobs(self, hidden: Tensor) -> Tensor:
        """(S, V) float32, over the ids below vocab_size alone."""
        logits = hidden @ head_of(self.model).T
        return logits[:, : self.facts.vocab_size].float().log_softmax(-1)

    def _choose(self, logprobs: Tensor, row_ids: Tensor, positions: Tensor) -> Answers:
        if self.facts.kind == "dense":
            return Answers(logprobs)
        if self.facts.kind == "topk":
            return likeliest(logprobs, self.facts.k)
        offsets = offsets_of(self._seed, row_ids.cpu().numpy(), positions.cpu().numpy())
        return drawn(logprobs, self.facts.k, torch.from_numpy(offsets).to(logprobs.device))


def open_direct_teacher(
    name: str,
    tokenizer: TokenizerFacts,
    vocab_size: int,
    *,
    adapter_path: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    kind: Kind = "topk",
    k: int = 64,
    temperatures: tuple[float, ...] = (1.0,),
    seed: int = 0,
) -> DirectTeacher:
    """Load a folder or a name of the Hub; an adapter is merged into it."""
    place = _device(device)
    adapter = [] if adapter_path is None else adapter_files(adapter_path)  # refused before the model is fetched
    model = load_causal_lm(name, dtype=_dtype(dtype, place), adapter_path=adapter_path)
    num_ids = head_of(model).shape[0]
    _check_vocabulary(num_ids, vocab_size, kind, k)
    if num_ids > vocab_size:
        print(
            f"note: the teacher {name} has {num_ids} ids, the corpus {vocab_size}; the {num_ids - vocab_size} ids that "
            "no text of the corpus holds get no probability",
            file=sys.stderr,
        )
    files = model_files(name)
    if note := note_of_other_pieces(files[0].parent, tokenizer):
        print(f"note: {note}", file=sys.stderr)
    return DirectTeacher(
        model.to(place),
        vocab_size=vocab_size,
        kind=kind,
        k=k,
        temperatures=temperatures,
        seed=seed,
        fingerprint=files_fingerprint([*files, *adapter]),
    )


def _check_vocabulary(num_ids: int, vocab_size: int, kind: Kind, k: int) -> None:
    if num_ids < vocab_size:
        raise ValueError(
            f"The teacher knows {num_ids} ids, but the corpus was made with a tokenizer of {vocab_size}. Use a teacher "
            "of that tokenizer, or preprocess the corpus with the teacher's (--tokenizer)."
        )
    if kind == "topk" and k > vocab_size:
        raise ValueError(
            f"teacher_topk={k} is more than the {vocab_size} ids there are. Lower it, or use teacher_kind=dense."
        )


def _device(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ValueError(
            f"teacher_device={asked!r} is unknown; expected auto, cuda, cuda:<number>, mps or cpu."
        ) from error
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if (device.index or 0) >= count.get(device.type, 0):
        raise ValueError(
            f"teacher_device={asked} was asked for, but this machine has {count['cuda']} GPUs for CUDA and "
            f"{count['mps']} for MPS. Use auto or cpu."
        )
    return device


def _dtype(asked: DType, device: torch.device) -> torch.dtype:
    """By default half the memory where bfloat16 is computed with as fast as it can be, exact elsewhere."""
    if asked != "auto":
        return DTYPES[asked]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
