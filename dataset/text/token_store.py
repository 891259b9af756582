"""Where tokenized documents are kept: in memory, in files, or wherever else `Documents` can be read from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from dataset.files.disk import disk_errors
from dataset.files.scratch import TO_MOVE
from dataset.text.conversation import EncodedConversation

TOKENS_FILE, BITS_FILE, OFFSETS_FILE = "tokens.bin", "trained_bits.bin", "offsets.bin"


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents one after another, on their way into a store."""

    ids: NDArray[np.int32]
    is_trained: NDArray[np.bool_]
    lengths: NDArray[np.int64]  # how many of the tokens belong to each document


def join_documents(documents: Sequence[EncodedConversation]) -> EncodedDocuments:
    return EncodedDocuments(
        ids=np.concatenate([document.ids for document in documents]),
        is_trained=np.concatenate([document.is_trained for document in documents]),
        lengths=np.array([len(document.ids) for document in documents], dtype=np.int64),
    )


class Documents(Protocol):
    """Tokenized documents, wherever they are kept."""

    def __len__(self) -> int: ...

    def lengths(self) -> NDArray[np.int64]:
        """The positions that each document takes in a row: its last token is only ever a label."""
        ...

    def document(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Token ids, and which of them are trained."""
        ...


@dataclass(frozen=True)
class DocumentStore:
    """Documents one after another: about 2 bytes a token, as tensors, which loader workers share and do not copy."""

    tokens: torch.Tensor  # uint16 where the vocabulary allows, else int32
    trained_bits: torch.Tensor  # uint8: a bit for every token
    offsets: torch.Tensor  # int64: where each document begins, and the end

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets.numpy()) - 1

    def document(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start, stop = self.offsets.numpy()[index : index + 2].tolist()
        bits = np.unpackbits(self.trained_bits.numpy()[start // 8 : (stop + 7) // 8])
        first = start % 8
        return self.tokens.numpy()[start:stop].astype(np.int32), bits[first : first + stop - start].view(np.bool_)

    def part(self, documents: range) -> "DocumentStore":
        """Neighbouring documents; nothing is copied."""
        return replace(self, offsets=self.offsets[documents.start : documents.stop + 1])


def token_dtype(vocab_size: int) -> DTypeLike:
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def map_documents(folder: Path, vocab_size: int) -> DocumentStore:
    """The store that a DocumentStoreBuilder has put into files: its pages are in memory once for all processes.

    The files may be removed afterwards. Loader workers that are forked share the pages too; others get a copy.
    """

    def mapped(name: str, dtype: DTypeLike) -> torch.Tensor:
        file = folder / name
        found = np.memmap(file, dtype, mode="c") if file.stat().st_size else np.zeros(0, dtype)  # c: nothing is written
        return torch.from_numpy(found)

    return DocumentStore(
        mapped(TOKENS_FILE, token_dtype(vocab_size)), mapped(BITS_FILE, np.uint8), mapped(OFFSETS_FILE, np.int64)
    )


class DocumentStoreBuilder:
    """Collects documents in buffers that grow in place, or in files of `folder`, which is created."""

    def __init__(self, vocab_size: int, folder: Path | None = None) -> None:
        self._vocab_size, self._folder = vocab_size, folder
        self._waiting = np.zeros(0, dtype=np.bool_)  # trained flags that do not fill a byte yet
        self._lengths: list[NDArray[np.int64]] = []
        self._tokens: BinaryIO = BytesIO()
        self._bits: BinaryIO = BytesIO()
        if folder is not None:
            with disk_errors(folder, TO_MOVE):
                folder.mkdir()
                self._tokens, self._bits = (
                    open(folder / name, "wb")  # noqa: SIM115 - `build` closes them
                    for name in (TOKENS_FILE, BITS_FILE)
                )

    def extend(self, documents: EncodedDocuments) -> None:
        flags = np.concatenate([self._waiting, documents.is_trained])
        whole = len(flags) - len(flags) % 8
        self._waiting = flags[whole:]
        self._lengths.append(documents.lengths)
        with disk_errors(self._folder or Path(), TO_MOVE):
            self._tokens.write(documents.ids.astype(token_dtype(self._vocab_size), copy=False).tobytes())
            self._bits.write(np.packbits(flags[:whole]).tobytes())

    def build(self) -> DocumentStore:
        """The builder is used up by this."""
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths]).cumsum()
        last_bits = np.packbits(self._waiting).tobytes()
        if self._folder is not None:
            with disk_errors(self._folder, TO_MOVE), self._tokens, self._bits:
                self._bits.write(last_bits)
                (self._folder / OFFSETS_FILE).write_bytes(offsets.tobytes())
            return map_documents(self._folder, self._vocab_size)
        assert isinstance(self._tokens, BytesIO) and isinstance(self._bits, BytesIO)
        self._bits.write(last_bits)
        return DocumentStore(
            tokens=torch.from_numpy(np.frombuffer(self._tokens.getbuffer(), dtype=token_dtype(self._vocab_size))),
            trained_bits=torch.from_numpy(np.frombuffer(self._bits.getbuffer(), dtype=np.uint8)),
            offsets=torch.from_numpy(offsets),
        )


class SpooledDocuments:
    """Documents in a temporary file in `folder`; read only when all have been added."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - `close` removes it
        self._lengths: list[NDArray[np.int64]] = []

    def extend(self, documents: EncodedDocuments) -> None:
        self._file.write((documents.ids.astype("<u4") << 1 | documents.is_trained).tobytes())
        self._lengths.append(documents.lengths)

    def close(self) -> None:
        self._file.close()

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths]).cumsum()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self._offsets) - 1

    def document(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start, stop = self._offsets[index : index + 2].tolist()
        self._file.seek(4 * start)
        found = np.frombuffer(self._file.read(4 * (stop - start)), dtype="<u4")
        return (found >> 1).astype(np.int32), (found & 1).astype(np.bool_)
