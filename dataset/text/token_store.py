"""Where tokenized documents are kept: in memory, in a temporary file, or wherever else `Documents` can be read from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dataset.text.conversation import EncodedConversation


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


class DocumentStoreBuilder:
    """Collects documents; its buffers grow in place."""

    def __init__(self, vocab_size: int) -> None:
        self._dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
        self._tokens, self._bits = bytearray(), bytearray()
        self._waiting = np.zeros(0, dtype=np.bool_)  # trained flags that do not fill a byte yet
        self._lengths: list[NDArray[np.int64]] = []

    def extend(self, documents: EncodedDocuments) -> None:
        self._tokens += documents.ids.astype(self._dtype, copy=False).tobytes()
        flags = np.concatenate([self._waiting, documents.is_trained])
        whole = len(flags) - len(flags) % 8
        self._bits += np.packbits(flags[:whole]).tobytes()
        self._waiting = flags[whole:]
        self._lengths.append(documents.lengths)

    def build(self) -> DocumentStore:
        """The builder is used up by this."""
        self._bits += np.packbits(self._waiting).tobytes()
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths]).cumsum()
        return DocumentStore(
            tokens=torch.from_numpy(np.frombuffer(self._tokens, dtype=self._dtype)),
            trained_bits=torch.from_numpy(np.frombuffer(self._bits, dtype=np.uint8)),
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
