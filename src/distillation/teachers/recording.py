"""Writes what another teacher says into a cache, and passes it on unchanged."""

from pathlib import Path

from dataset.common import Batch
from src.distillation.cache.format import CACHE_FILE, Cache, ValueDType, cache_facts, load_cache
from src.distillation.cache.store import CacheWriter
from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.targets.signal import Teacher, TeacherFacts, TeacherSignal


class RecordingTeacher:
    """Every row is written once, however often it is asked for; a cache of the same that is there is extended.

    One process at a time can write into a directory. `value_dtype` is by default that of the cache, else fp16.
    """

    def __init__(
        self,
        inner: Teacher,
        folder: Path,
        tokenizer: TokenizerFacts,
        corpus_fingerprint: str,
        value_dtype: ValueDType | None = None,
        shard_rows: int | None = None,
    ) -> None:
        if value_dtype is None:
            value_dtype = load_cache(folder).facts.value_dtype if (folder / CACHE_FILE).exists() else "fp16"
        self._inner = inner
        facts = cache_facts(inner.facts, tokenizer, corpus_fingerprint, value_dtype)
        self._writer = CacheWriter(folder, facts, shard_rows)

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
