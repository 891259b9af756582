"""From files of JSON lines to tokenized documents, in several processes where that pays, always in the same order."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.files.json_stream import parse_line
from dataset.files.jsonl import numbered_lines, read_blocks
from dataset.files.records import visible_files
from dataset.text.conversation import Turn, conversation_key, is_in_share, parse_record
from dataset.text.encoder_pool import chunked
from dataset.text.template import ConversationEncoder
from dataset.tokenization.lookup import open_tokenizer
from dataset.tokenization.protocol import is_unicode

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
BLOCK_BYTES = 1 << 20
CHUNK_BYTES = 1 << 19  # of text that a process is given at a time
MAX_LINE_BYTES = 1 << 28
POOL_PAYS_BYTES = 8 << 20  # starting processes costs seconds where they are spawned, not forked

FORMS = "Expected a JSON object with 'text', 'messages' (or 'conversations'), or 'prompt' and 'response' on every line."

Line = tuple[Path, int, bytes]  # file, line number from 1, text


@dataclass
class CorpusDocuments:
    """Documents one after another, each from its first token to its end-of-text token."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    lines: NDArray[np.int64]  # the line that each stood on
    is_val: NDArray[np.bool_]
    skipped: Counter[str] = field(default_factory=Counter)  # records by the reason


def find_jsonl(root: Path, recursive: bool) -> list[Path]:
    """The files of JSON lines in a folder, sorted, but not half-finished downloads."""
    if root.is_file():
        return [root]
    visible = visible_files(root, SUFFIXES)
    chosen = [path for path in visible if recursive or path.parent == root]
    if not chosen:
        hint = f"{len(visible)} lie in its subfolders: add --recursive." if visible else "Check --input."
        what = "does not exist" if not root.exists() else f"holds none of *{', *'.join(SUFFIXES)}"
        raise ValueError(f"No JSONL files found: {root} {what}. {hint}")
    return chosen


def read_chunks(path: Path, on_bytes: Callable[[int], Any]) -> Iterator[list[Line]]:
    """The lines that are not blank, in chunks; `on_bytes` is told how much of the file itself was read."""
    lines = ((path, number, line) for number, line in numbered_lines(read_blocks(path, on_bytes)) if line.strip())
    return chunked(lines, lambda line: len(line[2]), CHUNK_BYTES)


class DocumentEncoder:
    """Tokenizes records: a text between the marks of its beginning and end, or a conversation in the template."""

    def __init__(self, tokenizer_name: str, val_fraction: float) -> None:
        self._tokenizer = tokenizer = open_tokenizer(tokenizer_name)
        self._conversations = ConversationEncoder(tokenizer)
        self._begin = [np.array([tokenizer.bos_id], dtype=np.int32)] if tokenizer.bos_id is not None else []
        self._end = [np.array([tokenizer.eos_id], dtype=np.int32)]
        self._val_fraction = val_fraction

    def __call__(self, lines: list[Line]) -> CorpusDocuments:
        skipped: Counter[str] = Counter()
        numbers: list[int] = []
        contents: list[str | list[Turn]] = []
        is_val: list[bool] = []
        for source, number, line in lines:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{source}, line {number}: {len(line)} bytes, expected at most {MAX_LINE_BYTES}. {FORMS}"
                )
            content = parse_line(source, number, line, parse_content, FORMS)
            if isinstance(content, str):
                if not content.strip():
                    skipped["empty"] += 1
                    continue
                key = content
            else:
                key = conversation_key(content)
            numbers.append(number)
            contents.append(content)
            is_val.append(is_in_share(key, self._val_fraction))
        documents = self._encode_all(contents)
        kept = [index for index, document in enumerate(documents) if document is not None]
        skipped["without an answer"] += len(documents) - len(kept)
        found = [document for document in documents if document is not None]
        return CorpusDocuments(
            ids=np.concatenate([np.zeros(0, dtype=np.int32), *found]),
            lengths=np.array([len(document) for document in found], dtype=np.int64),
            lines=np.array(numbers, dtype=np.int64)[kept],
            is_val=np.array(is_val, dtype=np.bool_)[kept],
            skipped=+skipped,
        )

    def _encode_all(self, contents: list[str | list[Turn]]) -> list[NDArray[np.int32] | None]:
        """The documents in order; None for a conversation without an answer."""
        texts = iter(self._tokenizer.encode_batch([text for text in contents if isinstance(text, str)]))
        turns = [content for content in contents if not isinstance(content, str)]
        conversations = iter(self._conversations.encode_batch(turns))
        documents: list[NDArray[np.int32] | None] = []
        for content in contents:
            if isinstance(content, str):
                documents.append(np.concatenate([*self._begin, next(texts), *self._end]))
            else:
                conversation = next(conversations)
                documents.append(None if conversation is None else conversation.ids)
        return documents


def parse_content(record: Any) -> str | list[Turn]:
    """The text of a record, or its conversation."""
    if not isinstance(record, dict) or "text" not in record:
        return parse_record(record)
    text = record["text"]
    if not isinstance(text, str):
        raise ValueError(f"expected a string in 'text', found {type(text).__name__}")
    if not is_unicode(text):
        raise ValueError("the text is not valid Unicode (half of a surrogate pair)")
    return text
