"""A causal model of Hugging Face in this process as the teacher.

B rows, L positions, D hidden, V vocabulary.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from dataset.common import Batch
from engine.runtime.devices import choose_device, ranks_from_environment, to_device
from src.distillation.config import TeacherOptions
from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.targets.signal import Kind, TeacherFacts, TeacherSignal, predicted_places
from src.distillation.targets.topk import blank_signal, named
from src.distillation.teachers.causal_lm import (
    adapter_files,
    dtype_of,
    files_fingerprint,
    holds_adapter,
    load_causal_lm,
    model_files,
    note_of_other_pieces,
    weights_fingerprint,
)
from src.distillation.teachers.packed_attention import check_packable, check_vocabulary, head_of, packed_hidden

CHUNK_ELEMENTS = 2**24  # of float32: 64 MiB, some 130 positions of a vocabulary of 128,000


class DirectTeacher:
    """Asks `model`, whose ids from `vocab_size` on, if it has more, are left out.

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
        self.model = model.eval().requires_grad_(False)
        self.facts = TeacherFacts(vocab_size, kind, k, temperatures, fingerprint or weights_fingerprint(model))
        self._seed = seed
        self._chunk = max(1, chunk_elements // vocab_size)
        self._checked_length = 0  # the longest rows that the model is known to read correctly

    @torch.no_grad()
    def signal(self, batch: Batch) -> TeacherSignal:
        device, length = head_of(self.model).device, batch["inputs"].shape[1]
        if length > self._checked_length:
            check_packable(self.model, length)
            self._checked_length = length
        valid = predicted_places(batch["documents"])
        places = valid.flatten().nonzero().squeeze(-1)
        rows, positions = batch["row_id"][places // length], places % length
        read = {name: batch[name] for name in ("inputs", "positions", "documents")}
        read, valid, sent = to_device((read, valid, places), device)
        signal = blank_signal(self.facts, valid)
        flat = signal.flat()
        if len(places):
            hidden = packed_hidden(self.model, read).flatten(0, 1)  # (B * L, D)
            parts = (each.split(self._chunk) for each in (sent, rows, positions))
            for part, *which in zip(*parts, strict=True):
                flat.put(part, named(self._logprobs(hidden[part]), self.facts, self._seed, *which))
        return signal

    def close(self) -> None:
        """There is nothing to finish."""

    def _logprobs(self, hidden: Tensor) -> Tensor:
        """(S, V) float32, over the ids below vocab_size alone."""
        logits = hidden @ head_of(self.model).T
        return logits[:, : self.facts.vocab_size].float().log_softmax(-1)


def open_direct_teacher(
    options: TeacherOptions, tokenizer: TokenizerFacts, temperatures: tuple[float, ...] = (1.0,)
) -> DirectTeacher:
    """Load a folder or a name of the Hub; an adapter is merged into it unless its weights hold it."""
    assert options.teacher_model is not None
    name, adapter_path = options.teacher_model, options.teacher_adapter_path
    rank, _, local_rank = ranks_from_environment()
    device = choose_device(options.teacher_device, local_rank=local_rank)
    adapter = [] if adapter_path is None else adapter_files(adapter_path)  # refused before the model is fetched
    model = load_causal_lm(name, dtype=dtype_of(options.teacher_dtype, device), adapter_path=adapter_path)
    check_vocabulary(model, tokenizer.vocab_size)
    extra = len(head_of(model)) - tokenizer.vocab_size
    if extra and rank == 0:
        print(
            f"note: the teacher {name} has {len(head_of(model))} ids, the corpus {tokenizer.vocab_size}; the {extra} ids "
            "that no text of the corpus holds get no probability",
            file=sys.stderr,
        )
    files = model_files(name)
    if adapter_path is not None and holds_adapter(name, adapter_path):
        adapter = []  # the same teacher as without it
    if rank == 0 and (note := note_of_other_pieces(files[0].parent, tokenizer)):
        print(f"note: {note}", file=sys.stderr)
    return DirectTeacher(
        model.to(device),
        vocab_size=tokenizer.vocab_size,
        kind=options.teacher_kind,
        k=options.teacher_topk,
        temperatures=temperatures,
        seed=options.seed,
        fingerprint=files_fingerprint([*files, *adapter]),
    )
