"""A teacher's answers on disk: written while another teacher is asked, and read as a teacher that needs no model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.common import Batch
from src.distillation.cache.format import (
    CACHE_FILE,
    PROGRAM,
    Cache,
    CacheError,
    ValueDType,
    cache_facts,
    check_same,
    load_cache,
)
from src.distillation.cache.rows import decode
from src.distillation.cache.store import CacheReader, CacheWriter
from src.distillation.config import TeacherOptions
from src.distillation.corpus.manifest import Manifest
from src.distillation.corpus.packed_rows import NO_ROW
from src.distillation.targets.signal import Teacher, TeacherFacts, TeacherSignal, predicted_places
from src.distillation.targets.topk import blank_signal


class RecordingTeacher:
    """Every row is written once, however often it is asked for; a cache of the same that is there is extended.

    One process at a time can write into a directory. `value_dtype` is by default that of the cache, else fp16.
    """

    def __init__(
        self,
        inner: Teacher,
        folder: Path,
        corpus: Manifest,
        value_dtype: ValueDType | None = None,
        shard_rows: int | None = None,
    ) -> None:
        if value_dtype is None:
            value_dtype = load_cache(folder).facts.value_dtype if (folder / CACHE_FILE).exists() else "fp16"
        self._inner = inner
        self._writer = CacheWriter(folder, cache_facts(inner.facts, corpus, value_dtype), corpus, shard_rows)

    @property
    def facts(self) -> TeacherFacts:
        return self._inner.facts

    @property
    def cache(self) -> Cache:
        """What is on disk; the newest rows may still be waiting for their shard."""
        return self._writer.cache

    def signal(self, batch: Batch) -> TeacherSignal:
        signal = self._inner.signal(batch)
        self._writer.add(batch["row_id"].tolist(), signal)
        return signal

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self._inner.close()


class CachedTeacher:
    """Refuses a cache of another corpus, tokenizer, vocabulary, kind or k, or without one of the temperatures.

    A row that is not there is an error, or with `open_recorder` asked of that teacher, which writes it into the cache;
    it must be the teacher that the cache was made of, and is opened when it is first needed.
    """

    def __init__(
        self,
        options: TeacherOptions,
        corpus: Manifest,
        temperatures: tuple[float, ...] = (1.0,),
        open_recorder: Callable[[], RecordingTeacher] | None = None,
    ) -> None:
        self._folder, self._open_recorder = Path(options.cache_dir), open_recorder
        self._recorder: RecordingTeacher | None = None
        if open_recorder is not None and not (self._folder / CACHE_FILE).exists():
            self._recorder = open_recorder()
            cache = self._recorder.cache
        else:
            cache = load_cache(self._folder)
        kind, known = options.teacher_kind, cache.facts
        vocab_size = corpus.tokenizer.vocab_size
        self.facts = TeacherFacts(vocab_size, kind, options.teacher_topk, known.temperatures, known.teacher)
        check_same(self._folder, cache, cache_facts(self.facts, corpus, cache.facts.value_dtype), corpus)
        for temperature in temperatures:
            self.facts.column(temperature)
        self._cache_facts = cache.facts
        self._reader = CacheReader(self._folder, cache, corpus)

    @property
    def asks_for_missing(self) -> bool:
        return self._open_recorder is not None

    def missing(self, row_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these rows are not there."""
        return row_ids[~np.isin(row_ids, self._reader.row_ids)]

    def signal(self, batch: Batch) -> TeacherSignal:
        device = batch["inputs"].device
        row_ids = batch["row_id"].tolist()
        valid = predicted_places(batch["documents"].cpu())
        found = blank_signal(self.facts, valid)
        there = [place for place, row_id in enumerate(row_ids) if row_id in self._reader]
        missing = [place for place, row_id in enumerate(row_ids) if row_id not in self._reader and row_id != NO_ROW]
        if there:
            rows = [self._reader.row(row_ids[place]) for place in there]
            found.put(there, decode(self._cache_facts, rows, valid[there]))
        if missing:
            asked = {name: batch[name][missing] for name in ("inputs", "positions", "documents", "row_id")}
            found.put(missing, self._ask(asked).to(valid.device))
        return found.to(device)

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()

    def _ask(self, batch: Batch) -> TeacherSignal:
        if self._recorder is None:
            if self._open_recorder is None:
                self.refuse(batch["row_id"].cpu().numpy())
            assert self._open_recorder is not None
            self._recorder = self._open_recorder()
        known = len(self._recorder.cache.shards)
        signal = self._recorder.signal(batch)
        if len(self._recorder.cache.shards) > known:
            self._reader.use(self._recorder.cache)
        return signal

    def refuse(self, row_ids: NDArray[np.int64]) -> None:
        """Raise an error that says how to get these rows, if there are any."""
        if not len(row_ids):
            return
        facts = self._cache_facts
        more = f" (and {len(row_ids) - 1} more)" if len(row_ids) > 1 else ""
        topk = "" if facts.kind == "dense" else f" --topk {facts.k}"
        others = "".join(f" --temperature {t:g}" for t in facts.temperatures if t != 1.0)
        raise CacheError(
            f"The cache {self._folder} does not hold row {row_ids[0]}{more}. Make what is missing: {PROGRAM} "
            f"--data-path <the corpus> --teacher-model <the teacher> --output-dir {self._folder} --kind {facts.kind}{topk} "
            f"--value-dtype {facts.value_dtype}{others}; or set on_missing=direct, which asks the teacher itself."
        )
