"""The files of an instruction corpus: SlimOrca's one, those of another repository of the Hub, or those of a folder."""

import json
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.files.download import find_hub_file
from dataset.files.records import (
    NAMES_FILE,
    SUFFIXES,
    Content,
    DataFile,
    numbered_records,
    record_counts,
    repository_names,
    visible_files,
)
from dataset.text.conversation import conversation_key, is_in_share, parse_record
from dataset.text.encoder_pool import chunked

SLIMORCA = "Open-Orca/SlimOrca"
HUB_NAME = "oo-labeled_correct.gpt4.sharegpt.jsonl"  # what a copy of the repository calls the file
LOCAL_NAMES = ("SlimOrca.jsonl", "SlimOrca.jsonl.zst", HUB_NAME)
RECORDS_AT_A_TIME = 256


class CorpusPlace(NamedTuple):
    """Where a corpus is: a repository of the Hub and the folder its files go to, or a folder or file of this machine."""

    repo: str
    files: str | None  # only those like this pattern
    folder: Path
    source: str  # auto, local or hub: what lies in the folder, only that, or what the repository has

    def data_files(self, needs_all: bool, progress: bool) -> Iterator[DataFile]:
        """One after the other; a plain file of which not all is needed is downloaded as far as it is read."""
        if Path(self.repo).exists():
            yield from self._of_folder(Path(self.repo))
        elif self.repo == SLIMORCA:
            yield self._slimorca(needs_all, progress)
        else:
            yield from self._of_repository(needs_all, progress)

    def _slimorca(self, needs_all: bool, progress: bool) -> DataFile:
        here = (path for name in LOCAL_NAMES if (path := self.folder / name).exists())
        if self.source != "hub" and (found := next(here, None)):
            return found
        if self.source == "local":
            raise ValueError(
                f"No corpus in {self.folder}: expected one of {', '.join(LOCAL_NAMES)}. Put the file there, or set "
                f"dataset.source=hub to download {SLIMORCA}, or dataset.source=sample for the built-in corpus."
            )
        target = self.folder / LOCAL_NAMES[0]
        return target if target.exists() else _fetched(SLIMORCA, _choose_slimorca, target, needs_all, progress)

    def _of_folder(self, place: Path) -> list[Path]:
        if place.is_file():
            if place.name.endswith(SUFFIXES):
                return [place]
            raise ValueError(f"dataset.repo={place} is a file of an unknown kind, expected *{', *'.join(SUFFIXES)}.")
        names = [path.relative_to(place).as_posix() for path in visible_files(place, SUFFIXES)]
        return [place / name for name in self._chosen(names, str(place))]

    def _of_repository(self, needs_all: bool, progress: bool) -> Iterator[DataFile]:
        """Those of the folder, where somebody put them there; else those that the repository has, or had when the first
        of them was downloaded."""
        is_begun = (self.folder / NAMES_FILE).is_file()
        if self.source != "hub" and not is_begun and visible_files(self.folder, SUFFIXES):
            yield from self._of_folder(self.folder)
            return
        if self.source == "local" and not is_begun:
            raise ValueError(
                f"No corpus in {self.folder}: expected files *{', *'.join(SUFFIXES)} of {self.repo}. Put them there, or "
                "set dataset.source=hub to download them, or dataset.repo to the folder that holds them."
            )
        if self.repo.count("/") != 1:
            raise ValueError(
                f"dataset.repo={self.repo} is neither a folder or file of this machine nor a repository of the Hub. "
                f"Give a path, or a name like {SLIMORCA}."
            )
        for name in self._chosen(repository_names(self.repo, _data_names, self.folder, self.folder), self.repo):
            target = self.folder / name
            if target.is_file():
                yield target
            elif self.source == "local":
                raise ValueError(f"No {target}: it is part of {self.repo}. Set dataset.source=hub to download it.")
            else:
                yield _fetched(self.repo, name, target, needs_all, progress)

    def _chosen(self, names: Sequence[str], where: str) -> list[str]:
        """Those like the pattern; else all of one kind, or what of it is named for training."""
        if self.files is not None:
            found = [name for name in names if fnmatch(name, self.files)]
        else:
            kinds = ([name for name in names if name.endswith(suffix)] for suffix in SUFFIXES)
            of_one_kind = next(filter(None, kinds), [])
            found = [name for name in of_one_kind if _is_for_training(name)] or of_one_kind
        if not found:
            wanted = f"like dataset.files={self.files}" if self.files is not None else f"*{', *'.join(SUFFIXES)}"
            raise ValueError(f"{where} holds no file {wanted}, only {', '.join(names[:10]) or 'others'}.")
        return found


def _fetched(
    repo: str, choose: str | Callable[[list[str]], str], target: Path, needs_all: bool, progress: bool
) -> DataFile:
    file = find_hub_file(repo, choose, target)
    return file.fetch(progress) if needs_all or target.suffix != ".jsonl" else file


def _choose_slimorca(names: list[str]) -> str:
    return HUB_NAME if HUB_NAME in names else min((name for name in names if name.endswith(".jsonl")), default=HUB_NAME)


def _data_names(names: Sequence[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(SUFFIXES))


def _is_for_training(name: str) -> bool:
    return any(part.lower().startswith("train") for part in PurePosixPath(name).parts)


def wanted_records(file: DataFile, share: float, on_bytes: Callable[[int], object]) -> Iterator[NDArray[np.bool_]]:
    """Of one record after another, whether it is in the sample."""
    if share >= 1:
        yield from (np.ones(count, dtype=np.bool_) for count in record_counts(file, on_bytes))
        return
    for chunk in chunked(numbered_records(file, on_bytes), lambda record: 1, RECORDS_AT_A_TIME):
        yield np.array([is_sampled(content, share) for _, content in chunk])


def is_sampled(content: Content, share: float) -> bool:
    """By what is said in the conversation alone, in whatever form and file it stands."""
    try:
        record = json.loads(content.decode("utf-8-sig")) if isinstance(content, bytes) else content
        key = conversation_key(parse_record(record))
    except (ValueError, RecursionError):  # reading it says what is wrong
        key = repr(content)
    return is_in_share(key, share)
