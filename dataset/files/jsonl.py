"""Reads JSON Lines, plain or packed with gzip or zstd, and divides their lines between training and test."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dataset.common import mix_bits

BLOCK_BYTES = 1 << 20
SPLITS = ("train", "test")
UNUSED = 255  # the split number of a record that is read past


def read_blocks(path: Path, on_bytes: Callable[[int], Any] = lambda count: None) -> Iterator[bytes]:
    """The text of a file in blocks; `on_bytes` is told how much of the file itself was read."""
    with open(path, "rb") as file:
        blocks = _raw_blocks(file, on_bytes)
        yield from _unpacked(path, blocks) if path.suffix in (".gz", ".zst") else blocks


def numbered_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line)."""
    number, rest = 0, b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number += 1
            yield number, line
    if rest:
        yield number + 1, rest


def assign_splits(
    wanted: Iterable[NDArray[np.bool_]],
    seed: int,
    test_ratio: float,
    sizes: Sequence[int | None],
    on_found: Callable[[int], Any] = lambda count: None,
) -> NDArray[np.uint8]:
    """The split of each record (index into SPLITS, or UNUSED), as far as has to be read to have all that is wanted.

    `wanted` says of one record after another whether it is used at all. A hash of (seed, number of the record) decides on
    its split, whatever else is read; of each split at most the first `sizes` of those wanted are used, all where it is
    None. `on_found` is told how many used ones were added.
    """
    rooms = dict(enumerate(sizes[: 2 if test_ratio > 0 else 1]))
    assigned = [np.zeros(0, dtype=np.uint8)]
    num_records = 0
    for is_wanted in wanted:
        numbers = np.arange(num_records, num_records + len(is_wanted))
        splits = (hash_fraction(seed, numbers) < test_ratio).astype(np.uint8)
        splits[~is_wanted] = UNUSED
        num_records += len(is_wanted)
        for split, room in rooms.items():
            if room is not None:
                members = np.flatnonzero(splits == split)
                splits[members[room:]] = UNUSED
                rooms[split] = room - len(members[:room])
        assigned.append(splits)
        on_found(int((splits != UNUSED).sum()))
        if not any(room is None or room > 0 for room in rooms.values()):
            break
    every = np.concatenate(assigned)
    used = np.flatnonzero(every != UNUSED)
    return every[: used[-1] + 1] if len(used) else every[:0]


def hash_fraction(seed: int, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """A fixed number in [0, 1) for every (seed, number): two rounds of the splitmix64 finaliser."""
    mixed = mix_bits(np.array([seed], dtype=np.int64).view(np.uint64)) ^ numbers.astype(np.uint64)
    return (mix_bits(mixed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def line_counts(blocks: Iterable[bytes]) -> Iterator[int]:
    """How many lines end in each block, of which none is empty; a last line without an end counts too."""
    is_open = False
    for block in blocks:
        yield block.count(b"\n")
        is_open = not block.endswith(b"\n")
    if is_open:
        yield 1


def _raw_blocks(file: BinaryIO, on_bytes: Callable[[int], Any]) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        on_bytes(len(block))
        yield block


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise ValueError(
            f"Reading {path} needs the package zstandard. Install it (pip install zstandard) or unpack the file."
        ) from error
    return zstandard


def _unpacked(path: Path, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The text of a packed file, which may be several gzip members or zstd frames, one after another."""
    if path.suffix == ".gz":
        kind, broken, limits = "gzip", zlib.error, [BLOCK_BYTES]  # of a block of text: gzip packs up to 1000 to 1
        new_member = partial(zlib.decompressobj, zlib.MAX_WBITS | 16)
    else:
        zstandard = _zstandard(path)
        kind, broken, limits, new_member = "zstd", zstandard.ZstdError, [], zstandard.ZstdDecompressor().decompressobj
    member, is_inside = new_member(), False
    for block in blocks:
        while block:
            try:
                text = member.decompress(block, *limits)
            except broken as error:
                raise ValueError(f"{path} is not a {kind} file or is damaged: {error}. Fetch it again.") from error
            is_inside = not member.eof
            block = member.unconsumed_tail if is_inside else member.unused_data
            if member.eof:
                member = new_member()
            if text:
                yield text
    if is_inside:
        raise ValueError(f"{path} is cut off in the middle of its {kind} data. Fetch it again.")
