"""Which teacher a run asks: a model in this process, its answers on disk, or a server."""

from collections.abc import Sequence
from pathlib import Path

from src.distillation.config import TeacherOptions
from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.targets.signal import Teacher
from src.distillation.teachers.cached import CachedTeacher
from src.distillation.teachers.direct import open_direct_teacher
from src.distillation.teachers.network import NetworkTeacher
from src.distillation.teachers.recording import RecordingTeacher


def open_teacher(
    options: TeacherOptions,
    tokenizer: TokenizerFacts,
    corpus_fingerprint: str,
    vocab_size: int,
    *,
    temperatures: Sequence[float] = (),
    api_key: str | None = None,
) -> Teacher:
    """The teacher of rows of the corpus `corpus_fingerprint`, whose ids are those of `tokenizer`, below `vocab_size`.

    `temperatures` are further ones that it must know of; without an `api_key` that of the environment counts.
    """
    known_temperatures = tuple(sorted({*options.temperatures, *temperatures}))

    def direct() -> Teacher:
        assert options.teacher_model is not None
        return open_direct_teacher(
            options.teacher_model,
            tokenizer,
            vocab_size,
            adapter_path=options.teacher_adapter_path,
            device=options.teacher_device,
            dtype=options.teacher_dtype,
            kind=options.teacher_kind,
            k=options.teacher_topk,
            temperatures=known_temperatures,
            seed=options.seed,
        )

    if options.teacher_mode == "cached":
        return CachedTeacher(
            Path(options.cache_dir),
            tokenizer,
            corpus_fingerprint,
            vocab_size=vocab_size,
            kind=options.teacher_kind,
            k=options.teacher_topk,
            temperatures=known_temperatures,
            open_model=direct if options.on_missing == "direct" else None,
        )
    if options.teacher_mode == "network":
        teacher: Teacher = NetworkTeacher(
            options.teacher_url,
            options.teacher_model,
            vocab_size=vocab_size,
            k=options.teacher_topk,
            api_key=api_key,
            timeout=options.teacher_timeout,
            max_retries=options.teacher_max_retries,
            concurrency=options.teacher_concurrency,
        )
    else:
        teacher = direct()
    if not options.cache_logits:
        return teacher
    return RecordingTeacher(teacher, Path(options.cache_dir), tokenizer, corpus_fingerprint)
