"""Reads the values of one JSON array or of JSON Lines as they arrive: the text is never whole in memory."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, TypeVar

from dataset.files.jsonl import numbered_lines

Value = TypeVar("Value")

MAX_RECORD_BYTES = 1 << 26  # bounds memory; a record of 64 MB is a file in the wrong form
HEAD_BYTES = 1 << 16  # of a file, from which its form is seen
# A record that is not all there yet fails at the end of what is there, give or take a cut literal or escape.
NEAR_THE_END = 16
BYTE_ORDER_MARK = codecs.BOM_UTF8
FORMS = "Expected a JSON array of records, or JSON Lines: one record a line."


def read_values(blocks: Iterator[bytes], source: str) -> Iterator[tuple[str, Any]]:
    """(place in words, value) of every record; `source` names the text in errors."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= HEAD_BYTES:
            break
    if not head.removeprefix(BYTE_ORDER_MARK).strip():
        raise ValueError(f"{source} is empty. {FORMS}")
    parse = _array_elements if _is_array(head) else _lines
    yield from parse(source, chain([head], blocks))


def _is_array(head: bytes) -> bool:
    """Whether a file that begins so is one JSON array, and not a line for every list of messages."""
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    line, _, rest = text.partition(b"\n")
    if not text.startswith(b"[") or not rest.strip():
        return text.startswith(b"[")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _lines(source: str, blocks: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(_with_short_lines(source, blocks)):
        if line.strip():
            yield f"line {number}", parse_line(source, number, line, lambda value: value, FORMS)


def parse_line(source: object, number: int, line: bytes, parse: Callable[[Any], Value], remedy: str) -> Value:
    """What `parse` makes of the JSON of a line; what is wrong with it is told with the place and `remedy`."""
    try:
        return parse(json.loads(line.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{source}, line {number}: {error}. The line begins {line[:60]!r}. {remedy} Repair or remove it, or fetch the "
            "file again if it is cut off."
        ) from error


def _with_short_lines(source: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    length = 0  # of the line that is open
    for block in blocks:
        end = block.rfind(b"\n")
        length = length + len(block) if end < 0 else len(block) - end - 1
        _check_size(source, "a line", length)
        yield block


def _check_size(source: str, what: str, size: int) -> None:
    if size > MAX_RECORD_BYTES:
        raise ValueError(f"{source}: {what} is longer than {MAX_RECORD_BYTES >> 20} MB. {FORMS}")


def _array_elements(source: str, blocks: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    text = _TextWindow(source, blocks)
    text.skip("[")
    number = 0
    if text.next_sign() != "]":
        while True:
            number += 1
            yield f"record {number}", text.take_value()
            if text.next_sign() == "]":
                break
            text.skip(",")
    text.skip("]")
    if text.next_sign():
        raise text.broken(f"expected the end of the file after the array, found {text.next_sign()!r}")


class _TextWindow:
    """The part of a long text around the place where a reader is, and where that is in bytes."""

    def __init__(self, source: str, blocks: Iterable[bytes]) -> None:
        self._source = source
        self._blocks = iter(blocks)
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decoder = json.JSONDecoder()
        self._text, self._at = "", 0
        self._bytes_before = 0  # of the file, before `_text`
        self._bytes_read = 0
        self._is_complete = False

    def next_sign(self) -> str:
        """The next character that is neither white space nor a byte order mark; nothing at the end of the text."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n\ufeff":
                self._at += 1
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def skip(self, sign: str) -> None:
        found = self.next_sign()
        if found != sign:
            raise self.broken(f"expected {sign!r}, found {found!r}" if found else "the file is cut off")
        self._at += 1

    def take_value(self) -> Any:
        self.next_sign()
        if 2 * self._at > len(self._text):  # what lies behind is forgotten rarely, for that copies the rest
            self._bytes_before += len(self._text[: self._at].encode("utf-8"))
            self._text, self._at = self._text[self._at :], 0
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated string")
                # Twice as much every time, so that a long record is not parsed again and again.
                twice = 2 * (len(self._text) - self._at)
                if (is_open or error.pos >= len(self._text) - NEAR_THE_END) and self._grow(twice):
                    continue
                is_cut = is_open or not self._text[error.pos :].strip()
                raise self.broken(f"{error.msg}, the file is cut off" if is_cut else error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self.broken(str(error)) from error
            if end + 2 >= len(self._text) and self._grow():
                continue  # a number may go on: 1, 1.5, 1.5e+3
            self._at = end
            return value

    def broken(self, what: str, at: int | None = None) -> ValueError:
        at = self._at if at is None else at
        place = self._bytes_before + len(self._text[:at].encode("utf-8"))
        return ValueError(
            f"{self._source}, byte {place}: {what}. Found {self._text[at : at + 60]!r}. {FORMS} Repair the file, "
            "or fetch it again."
        )

    def _grow(self, size: int = 0) -> bool:
        """Read on, until `size` characters are ahead or the text ends; says whether there was more."""
        parts, ahead = [self._text], len(self._text) - self._at
        size = max(size, ahead + 1)
        while not self._is_complete and ahead < size:
            _check_size(self._source, "a record", ahead)
            parts.append(self._decode(next(self._blocks, b"")))
            ahead += len(parts[-1])
        self._text = "".join(parts)
        return len(self._text) > len(parts[0])

    def _decode(self, block: bytes) -> str:
        self._is_complete = not block
        start = self._bytes_read - len(self._utf8.getstate()[0])
        self._bytes_read += len(block)
        try:
            return self._utf8.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._source}, byte {start + error.start}: {error.reason}, so this is not UTF-8. Convert the file."
            ) from error
