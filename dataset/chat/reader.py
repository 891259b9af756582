"""Opens data sets of conversations, memory-mapped, as Documents (dataset/text/token_store.py).

A conversation is in one row from `start` to `stop`: its inputs are all tokens but the last, its labels all but the first.
So its tokens are the inputs and the last label, and a token is trained where it is a label. `all__places.npy` has row,
start and stop of every conversation; packed rows also have the number of the document at every position, in
`all__documents.npy`.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from dataset.chat.template import TEMPLATE
from dataset.common import IGNORE_LABEL_ID, PuzzleDatasetMetadata
from dataset.files.disk import file_sha256
from dataset.files.json_file import read_json, read_model
from dataset.files.jsonl import SPLITS
from dataset.files.writer import BOARD_SET, TOKENIZER_FOLDER
from dataset.puzzles.format import open_split, read_array

FORMAT_VERSION = 1
PLACES_FILE = f"{BOARD_SET}__places.npy"  # (documents, 3): row, start, stop
BUILD = "python -m dataset.build_chat_dataset --input-file FILE --output-dir"


class ChatFacts(BaseModel):
    """What dataset.json says beyond the puzzle format."""

    format_version: int
    template: str
    tokenizer_sha256: str
    loss_on: Literal["assistant", "all"]
    is_packed: bool
    documents: int = Field(ge=0)  # more than conversations where long ones were split
    conversations: int = Field(ge=0)
    tokens: int = Field(ge=0)
    trained_tokens: int = Field(ge=0)
    truncated: int = Field(ge=0)
    dropped: int = Field(ge=0)
    max_document: int = Field(ge=0)  # positions of the longest


class ChatMetadata(PuzzleDatasetMetadata):
    """dataset.json of a data set of conversations."""

    chat: ChatFacts


class ChatPart:
    """The documents of one split of one folder."""

    def __init__(self, split_folder: Path, vocab_size: int, places: NDArray[np.int32]) -> None:
        self._folder, self._vocab_size = split_folder, vocab_size
        self.places = places  # (documents, 3)
        arrays = open_split(split_folder.parent, split_folder.name, check=False).sets[BOARD_SET]
        self._inputs, self._labels = np.asarray(arrays.inputs), np.asarray(arrays.labels)

    def __reduce__(self) -> tuple[type["ChatPart"], tuple[Path, int, NDArray[np.int32]]]:
        return ChatPart, (self._folder, self._vocab_size, self.places)  # another process maps the files itself

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        return {self._inputs.shape, self._labels.shape}

    def document(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        row, start, stop = self.places[index].tolist()
        labels = self._labels[row, start:stop]
        ids = np.append(self._inputs[row, start:stop], labels[-1]).astype(np.int32)
        if not 0 <= ids.min() <= ids.max() < self._vocab_size:
            raise ValueError(
                f"{self._folder}, row {row}: found tokens from {ids.min()} to {ids.max()} at {start} to {stop}, expected "
                f"0 to {self._vocab_size - 1} and a label at the end. The data set is damaged; build it again."
            )
        return ids, np.append(False, labels != IGNORE_LABEL_ID)

    def fitted(self, seq_len: int) -> tuple["ChatPart", int]:
        """Documents that end with their last trained token within `seq_len`, and how many tokens' training is lost."""
        places, lost = self.places.copy(), 0
        for index in np.flatnonzero(places[:, 2] - places[:, 1] > seq_len).tolist():
            row, start, stop = places[index].tolist()
            trained = np.flatnonzero(self._labels[row, start:stop] != IGNORE_LABEL_ID)
            kept = trained[trained < seq_len]
            places[index, 2] = start + kept.max(initial=-1) + 1
            lost += len(trained) - len(kept)
        return ChatPart(self._folder, self._vocab_size, places[places[:, 2] > places[:, 1]]), lost


class ChatDocuments:
    """The documents of one or more folders."""

    def __init__(self, parts: Sequence[ChatPart]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lengths(self) -> NDArray[np.int64]:
        places = np.concatenate([part.places for part in self._parts])
        return (places[:, 2] - places[:, 1]).astype(np.int64)

    def document(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number].document(index - (int(self._ends[number - 1]) if number else 0))


def chat_splits(paths: Sequence[str | Path]) -> list[str]:
    """The splits that at least one of the folders has."""
    return [split for split in SPLITS if any((Path(path) / split / "dataset.json").is_file() for path in paths)]


def chat_tokenizer_folder(paths: Sequence[str | Path]) -> Path:
    """Where the tokenizer of these folders is; `open_chat_data` has checked that they share one."""
    return Path(paths[0]) / TOKENIZER_FOLDER


def open_chat_data(
    paths: Sequence[str | Path], split: str, seq_len: int | None = None
) -> tuple[ChatDocuments, ChatMetadata]:
    """The documents of a split of all folders that have it, and what is true of all of them together.

    Documents that take more than `seq_len` positions are cut; `metadata.chat` counts what was truncated or dropped.
    """
    for path in paths:
        _check_folder(Path(path))
    owners = [Path(path) for path in paths if (Path(path) / split / "dataset.json").is_file()]
    if not owners:
        raise ValueError(
            f"None of {', '.join(map(str, paths)) or 'no folders'} has the split '{split}'; found "
            f"{', '.join(chat_splits(paths)) or 'none'}. Build a data set with another --train-split."
        )
    _check_tokenizers([Path(path) for path in paths])
    found = [read_chat_metadata(path, split) for path in owners]
    opened = [_open_part(path, split, metadata) for path, metadata in zip(owners, found, strict=True)]
    facts = _together([metadata.chat for metadata in found])
    if seq_len is not None and seq_len < facts.max_document:
        opened, facts = _cut(opened, facts, seq_len)
    documents = ChatDocuments(opened)
    groups = len(documents)
    own = {"seq_len": seq_len or max(metadata.seq_len for metadata in found), "chat": facts}
    return documents, found[0].model_copy(update=own | {"total_groups": groups, "total_puzzles": groups})


def folder_sha256(folder: Path) -> str:
    """The fingerprint of a tokenizer: names and content of its files; hidden ones are the system's."""
    whole = sha256()
    for file in sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")):
        whole.update(f"{file.name} {file_sha256(file)} ".encode())
    return whole.hexdigest()


def read_chat_metadata(path: str | Path, split: str) -> ChatMetadata:
    file = Path(path) / split / "dataset.json"
    remedy = f"Build it again: {BUILD} {path}"
    if "chat" not in read_json(file, dict, remedy):
        raise ValueError(f"{path} holds puzzles, not conversations. Build one with: {BUILD} FOLDER")
    metadata = read_model(file, ChatMetadata, remedy)
    for name, expected in {"format_version": FORMAT_VERSION, "template": TEMPLATE}.items():
        found = getattr(metadata.chat, name)
        if found != expected:
            raise ValueError(f"{file} has {name}={found}, expected {expected}. {remedy}")
    return metadata


def _check_tokenizers(paths: Sequence[Path]) -> None:
    """All folders share a tokenizer, whatever splits they have, and it is still there."""
    first = ""
    for path in paths:
        own = read_chat_metadata(path, chat_splits([path])[0]).chat.tokenizer_sha256
        if folder_sha256(path / TOKENIZER_FOLDER) != own:
            raise ValueError(
                f"{path / TOKENIZER_FOLDER} does not hold the tokenizer that the data set was built with. "
                f"Put it back, or build the data set again: {BUILD} {path}"
            )
        first = first or own
        if own != first:
            raise ValueError(
                f"{path} and {paths[0]} have different tokenizers and cannot be mixed. Build them with the same one, "
                f"for example: --tokenizer {paths[0] / TOKENIZER_FOLDER}"
            )


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise ValueError(f"No data set at '{path}': there is no such folder. Build one with: {BUILD} {path}")
    if not chat_splits([path]):
        raise ValueError(f"'{path}' is not a data set: no split has a dataset.json. Build one with: {BUILD} FOLDER")


def _open_part(path: Path, split: str, metadata: ChatMetadata) -> ChatPart:
    file = path / split / PLACES_FILE
    places = read_array(file, f"Build it again: {BUILD} {path}")
    part = ChatPart(path / split, metadata.vocab_size, places)
    shape = (metadata.total_groups, metadata.seq_len)
    if part.shapes != {shape}:
        raise ValueError(f"{path / split} holds rows of shape {part.shapes}, expected {shape}. Build it again.")
    rows, starts, stops = places.T if places.ndim == 2 and places.shape[1] == 3 else (np.full(1, -1),) * 3
    sound = (rows >= 0) & (rows < shape[0]) & (starts >= 0) & (starts < stops) & (stops <= shape[1])
    if len(places) != metadata.chat.documents or not sound.all():
        raise ValueError(
            f"{file} does not fit {metadata.chat.documents} documents in {shape[0]} rows of {shape[1]}. "
            f"Build it again: {BUILD} {path}"
        )
    return part


def _together(facts: Sequence[ChatFacts]) -> ChatFacts:
    counts = ("documents", "conversations", "tokens", "trained_tokens", "truncated", "dropped")
    sums = {name: sum(getattr(fact, name) for fact in facts) for name in counts}
    return facts[0].model_copy(update=sums | {"max_document": max(fact.max_document for fact in facts)})


def _cut(parts: Sequence[ChatPart], facts: ChatFacts, seq_len: int) -> tuple[list[ChatPart], ChatFacts]:
    long = sum(int((part.places[:, 2] - part.places[:, 1] > seq_len).sum()) for part in parts)
    fitted = [part.fitted(seq_len) for part in parts]
    kept = [part for part, _ in fitted]
    dropped = facts.documents - sum(map(len, kept))
    lengths = np.concatenate([part.places[:, 2] - part.places[:, 1] for part in kept])
    return kept, facts.model_copy(
        update={
            "documents": len(lengths),
            "tokens": int(lengths.sum()) + len(lengths),
            "trained_tokens": facts.trained_tokens - sum(lost for _, lost in fitted),
            "truncated": facts.truncated + long - dropped,
            "dropped": facts.dropped + dropped,
            "max_document": int(lengths.max(initial=0)),
        }
    )
