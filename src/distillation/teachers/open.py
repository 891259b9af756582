"""Which teacher a run asks: a model in this process, its answers on disk, or a server."""

from collections.abc import Sequence
from pathlib import Path

from src.distillation.config import TeacherOptions
from src.distillation.corpus.manifest import Manifest
from src.distillation.targets.signal import Teacher
from src.distillation.teachers.cached import CachedTeacher, RecordingTeacher
from src.distillation.teachers.direct import open_direct_teacher
from src.distillation.teachers.network import NetworkTeacher


def open_teacher(
    options: TeacherOptions,
    corpus: Manifest,
    *,
    temperatures: Sequence[float] = (),
    api_key: str | None = None,
) -> Teacher:
    """The teacher of the rows of a corpus.

    `temperatures` are further ones that its signal must have; without an `api_key` that of the environment counts.
    """
    wanted = tuple(sorted({*options.temperatures, *temperatures}))

    def recorded(teacher: Teacher) -> RecordingTeacher:
        return RecordingTeacher(teacher, Path(options.cache_dir), corpus)

    def recorded_model() -> RecordingTeacher:
        return recorded(open_direct_teacher(options, corpus.tokenizer, wanted))

    if options.teacher_mode == "cached":
        open_recorder = recorded_model if options.on_missing == "direct" else None
        return CachedTeacher(options, corpus, wanted, open_recorder)
    if options.teacher_mode == "network":
        teacher: Teacher = NetworkTeacher(options, corpus.tokenizer.vocab_size, api_key)
    else:
        teacher = open_direct_teacher(options, corpus.tokenizer, wanted)
    return recorded(teacher) if options.cache_logits else teacher
