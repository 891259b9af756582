"""Which teacher a run asks: a model in this process, its answers on disk, or a server."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.targets.signal import Kind, Teacher
from src.distillation.teachers.cached import CachedTeacher
from src.distillation.teachers.direct import DType, open_direct_teacher
from src.distillation.teachers.network import NetworkTeacher
from src.distillation.teachers.recording import RecordingTeacher

Mode = Literal["direct", "cached", "network"]
OnMissing = Literal["error", "direct"]


@dataclass(frozen=True)
class TeacherSpec:
    mode: Mode
    model: str | None = None  # a folder or a name of the Hub; of a server its name there, None: the only one it has
    adapter_path: str | None = None
    device: str = "auto"  # of a model in this process
    dtype: DType = "auto"
    kind: Kind = "topk"
    k: int = 64  # ids told of a position; of no meaning where dense
    temperatures: tuple[float, ...] = (1.0,)  # that the loss will ask for; 1.0 is always there
    cache_dir: str | Path | None = None
    record: bool = False  # write what the teacher says into cache_dir on the way
    on_missing: OnMissing = "error"  # of mode cached: what happens if a row is not there
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)  # None: TEACHER_API_KEY of the environment, if set
    timeout: float = 30.0  # seconds
    max_retries: int = 3
    concurrency: int = 4
    seed: int = 0  # of the draws where sampled

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r}: expected one of {', '.join(get_args(choices))}"
            for name, value, choices in (
                ("teacher_mode", self.mode, Mode),
                ("teacher_kind", self.kind, Kind),
                ("teacher_dtype", self.dtype, DType),
                ("on_missing", self.on_missing, OnMissing),
            )
            if value not in get_args(choices)
        ]
        if self.k < 1:
            problems.append(f"teacher_topk={self.k}: expected 1 or more")
        if not all(0 < temperature < float("inf") for temperature in self.temperatures):
            problems.append(f"teacher_temperature={self.temperatures}: expected numbers above 0")
        if self.mode == "direct" and not self.model:
            problems.append("teacher_mode=direct needs teacher_model, a folder or a name of the Hub")
        if (self.mode == "cached" or self.record) and not self.cache_dir:
            problems.append("teacher_mode=cached and cache_logits need cache_dir, the folder of the teacher's answers")
        if self.mode == "cached" and self.record:
            problems.append(
                "cache_logits=true is for teacher_mode=direct or network, found cached. Leave it out; with "
                "on_missing=direct what is missing is written in any case"
            )
        if self.on_missing == "direct" and (self.mode != "cached" or not self.model):
            problems.append("on_missing=direct is for teacher_mode=cached and needs teacher_model, which is then asked")
        if self.mode == "network":
            problems += self._network_problems()
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _network_problems(self) -> list[str]:
        problems = []
        if not self.url:
            problems.append("teacher_mode=network needs teacher_url, such as http://localhost:8000")
        if self.kind != "topk":
            problems.append(f"a server tells the likeliest ids only: teacher_kind=topk, found {self.kind}")
        if set(self.temperatures) - {1.0}:
            problems.append(
                f"a server tells of temperature 1 only, found {max(self.temperatures, key=lambda t: abs(t - 1)):g}. Set "
                "teacher_temperature=1, use tail=renorm, or a teacher in this process"
            )
        if self.adapter_path:
            problems.append("a server applies its adapters itself: leave out teacher_adapter_path")
        if not self.timeout > 0 or self.max_retries < 0 or self.concurrency < 1:
            problems.append(
                f"timeout={self.timeout}, max_retries={self.max_retries}, concurrency={self.concurrency}: expected more "
                "than 0, 0 or more, 1 or more"
            )
        return problems


def open_teacher(spec: TeacherSpec, tokenizer: TokenizerFacts, corpus_fingerprint: str, vocab_size: int) -> Teacher:
    """The teacher of rows of the corpus `corpus_fingerprint`, whose ids are those of `tokenizer`, below `vocab_size`."""
    temperatures = tuple(sorted({1.0, *spec.temperatures}))

    def direct() -> Teacher:
        assert spec.model is not None
        return open_direct_teacher(
            spec.model,
            tokenizer,
            vocab_size,
            adapter_path=spec.adapter_path,
            device=spec.device,
            dtype=spec.dtype,
            kind=spec.kind,
            k=spec.k,
            temperatures=temperatures,
            seed=spec.seed,
        )

    if spec.mode == "cached":
        assert spec.cache_dir is not None
        return CachedTeacher(
            Path(spec.cache_dir),
            tokenizer,
            corpus_fingerprint,
            vocab_size=vocab_size,
            kind=spec.kind,
            k=spec.k,
            temperatures=temperatures,
            open_model=direct if spec.on_missing == "direct" else None,
        )
    if spec.mode == "network":
        assert spec.url is not None
        teacher: Teacher = NetworkTeacher(
            spec.url,
            spec.model,
            vocab_size=vocab_size,
            k=spec.k,
            api_key=spec.api_key,
            timeout=spec.timeout,
            max_retries=spec.max_retries,
            concurrency=spec.concurrency,
        )
    else:
        teacher = direct()
    if not spec.record:
        return teacher
    assert spec.cache_dir is not None
    return RecordingTeacher(teacher, Path(spec.cache_dir), tokenizer, corpus_fingerprint)
