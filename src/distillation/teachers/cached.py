"""A teacher's answers on disk as the teacher: no model is needed, but for rows that are not there if so wished."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dataset.common import Batch
from src.distillation.cache.format import (
    CACHE_FILE,
    PROGRAM,
    Cache,
    CacheError,
    CacheFacts,
    cache_facts,
    check_same,
    load_cache,
)
from src.distillation.cache.rows import decode
from src.distillation.cache.store import CacheReader, CacheWriter
from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.corpus.packed_rows import NO_ROW
from src.distillation.targets.signal import Kind, Teacher, TeacherFacts, TeacherSignal, predicted_places
from src.distillation.targets.topk import blank_signal


class CachedTeacher:
    """Refuses a cache of another corpus, tokenizer, vocabulary, kind or k, or without one of the temperatures.

    A row that is not there is an error, or with `open_model` asked of that teacher and written; the teacher must be
    the one that the cache was made of, and is opened when it is first needed.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: TokenizerFacts,
        corpus_fingerprint: str,
        *,
        vocab_size: int,
        kind: Kind,
        k: int,
        temperatures: tuple[float, ...] = (1.0,),
        open_model: Callable[[], Teacher] | None = None,
    ) -> None:
        self._folder, self._open_model = folder, open_model
        self._tokenizer, self._corpus = tokenizer, corpus_fingerprint
        self._model: Teacher | None = None
        self._writer: CacheWriter | None = None
        if open_model is not None and not (folder / CACHE_FILE).exists():
            cache = Cache(facts=self._ask_of(open_model(), None).cache.facts)
        else:
            cache = load_cache(folder)
        self.facts = TeacherFacts(
            vocab_size=vocab_size,
            kind=kind,
            k=vocab_size if kind == "dense" else k,
            temperatures=cache.facts.temperatures,
            fingerprint=cache.facts.teacher,
        )
        expected = cache_facts(self.facts, tokenizer, corpus_fingerprint, cache.facts.value_dtype)
        check_same(folder, cache.facts, expected)
        for temperature in temperatures:
            self.facts.column(temperature)
        self._cache_facts = cache.facts
        self._reader = CacheReader(folder, cache)

    def signal(self, batch: Batch) -> TeacherSignal:
        device = batch["inputs"].device
        row_ids = batch["row_id"].tolist()
        valid = predicted_places(batch["documents"].cpu())
        told = blank_signal(self.facts, valid)
        there = [place for place, row_id in enumerate(row_ids) if row_id in self._reader]
        missing = [place for place, row_id in enumerate(row_ids) if row_id not in self._reader and row_id != NO_ROW]
        if there:
            rows = [self._reader.row(row_ids[place]) for place in there]
            _put_rows(told, there, decode(self._cache_facts, rows, valid[there]))
        if missing:
            asked = {name: batch[name][missing] for name in ("inputs", "positions", "documents", "row_id")}
            _put_rows(told, missing, self._ask_model(asked, [row_ids[place] for place in missing]).to(valid.device))
        return told.to(device)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._model is not None:
            self._model.close()

    def _ask_model(self, batch: Batch, row_ids: list[int]) -> TeacherSignal:
        if self._open_model is None:
            more = f" (and {len(row_ids) - 1} more of this batch)" if len(row_ids) > 1 else ""
            raise CacheError(
                f"The cache {self._folder} does not hold row {row_ids[0]}{more}. Make what is missing: {PROGRAM} "
                f"--data-path <the corpus> --teacher-model <the teacher> --output-dir {self._folder} "
                f"{_flags(self._cache_facts)}; or set on_missing=direct, which asks the teacher itself."
            )
        if self._writer is None:
            self._ask_of(self._open_model(), self._cache_facts)
        assert self._model is not None and self._writer is not None
        writer = self._writer
        told = self._model.signal(batch)
        known = len(writer.cache.shards)
        writer.add(row_ids, told)
        if len(writer.cache.shards) > known:
            self._reader.use(writer.cache)
        return told

    def _ask_of(self, model: Teacher, there: CacheFacts | None) -> CacheWriter:
        """From now on ask `model` for what is missing, and write it."""
        value_dtype = "fp16" if there is None else there.value_dtype
        facts = cache_facts(model.facts, self._tokenizer, self._corpus, value_dtype)
        self._model, self._writer = model, CacheWriter(self._folder, facts)
        return self._writer


def _put_rows(told: TeacherSignal, places: list[int], answers: TeacherSignal) -> None:
    values = answers.columns()
    for name, target in told.columns().items():
        value: Tensor = values[name]
        target[torch.tensor(places)] = value


def _flags(facts: CacheFacts) -> str:
    told = "" if facts.kind == "dense" else f" --topk {facts.k}"
    others = "".join(f" --temperature {t:g}" for t in facts.temperatures if t != 1.0)
    return f"--kind {facts.kind}{told} --value-dtype {facts.value_dtype}{others}"
