"""How a row of teacher's answers is stored in a shard: a few fixed-size cells, little-endian, one parquet file a shard.

L positions of a row, K ids that are named at a position. Beside `row_id` the columns are, each of L times that much:
`ids` (uint16 or uint32; K, the largest number where there is none), `logprobs` (K; fp16, or u8 with `scales`: the
lowest and the step), `log_norms` (float32, of all temperatures but 1), `counts` (unsigned; K, where sampled).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataset.files.parquet import import_parquet
from models.losses.distill import NO_MASS, UNUSED
from src.distillation.cache.format import CacheFacts
from src.distillation.corpus.parquet import write_parquet
from src.distillation.targets.signal import TeacherSignal

ROW_GROUP_BYTES = 1 << 20  # what is read at a time to get one row
LARGEST_CELL = 1 << 30  # parquet counts the bytes of a page in 32 bits
LOWEST_FP16 = -65504.0
LEVELS = 255  # between the lowest and the highest value of a position, as u8

Row = Mapping[str, NDArray[Any]]  # column -> (L, ...)


def columns_of(facts: CacheFacts) -> dict[str, tuple[np.dtype[Any], int]]:
    """Column -> (type, how many a position)."""
    columns = {"logprobs": (np.dtype("<f2" if facts.value_dtype == "fp16" else "u1"), facts.k)}
    if facts.kind != "dense":
        columns["ids"] = (np.dtype("<u2" if facts.vocab_size < 1 << 16 else "<u4"), facts.k)
    if facts.value_dtype == "u8":
        columns["scales"] = (np.dtype("<f4"), 2)
    if len(facts.temperatures) > 1:
        columns["log_norms"] = (np.dtype("<f4"), len(facts.temperatures) - 1)
    if facts.kind == "sampled":
        columns["counts"] = (np.min_scalar_type(facts.k).newbyteorder("<"), facts.k)
    return columns


def bytes_per_position(facts: CacheFacts) -> int:
    return sum(dtype.itemsize * count for dtype, count in columns_of(facts).values())


def encode(facts: CacheFacts, signal: TeacherSignal) -> list[Row]:
    """The rows of a batch, as they are stored."""
    columns = columns_of(facts)
    logprobs = signal.logprobs.float().cpu().numpy()
    stored: dict[str, NDArray[Any]] = {}
    is_used = np.ones_like(logprobs, dtype=np.bool_)
    if signal.ids is not None:
        ids = signal.ids.cpu().numpy()
        dtype = columns["ids"][0]
        is_used = ids != UNUSED
        stored["ids"] = np.where(is_used, ids, np.iinfo(dtype).max).astype(dtype)
    if facts.value_dtype == "fp16":
        stored["logprobs"] = np.maximum(logprobs, LOWEST_FP16).astype("<f2")
    else:
        lowest = np.where(is_used, logprobs, np.inf).min(-1)
        highest = np.where(is_used, logprobs, -np.inf).max(-1)
        is_valid = is_used.any(-1)
        lowest = np.where(is_valid, lowest, 0).astype("<f4")
        step = (np.where(is_valid, highest - lowest, 0) / LEVELS).astype("<f4")
        above = np.where(is_used, logprobs - lowest[..., None], 0) / np.where(step > 0, step, 1)[..., None]
        stored["logprobs"] = above.round().clip(0, LEVELS).astype("u1")
        stored["scales"] = np.stack([lowest, step], axis=-1)
    if "log_norms" in columns:
        others = [index for index, temperature in enumerate(facts.temperatures) if temperature != 1.0]
        stored["log_norms"] = signal.log_norms.float().cpu().numpy()[..., others].astype("<f4")
    if signal.shares is not None:
        stored["counts"] = (signal.shares.float().cpu().numpy() * facts.k).round().astype(columns["counts"][0])
    return [{name: values[row] for name, values in stored.items()} for row in range(len(logprobs))]


def decode(facts: CacheFacts, rows: Sequence[Row], valid: Tensor) -> TeacherSignal:
    """What was stored of some rows; `valid` (rows, L) goes with them.

    Rounding must not leave more mass than there is: what is over is taken off all log-probabilities of the position.
    """
    stored = {name: np.stack([row[name] for row in rows]) for name in columns_of(facts)}
    logprobs = torch.from_numpy(stored["logprobs"].astype(np.float32))
    if "scales" in stored:
        lowest, step = torch.from_numpy(stored["scales"].astype(np.float32)).split(1, dim=-1)
        logprobs.mul_(step).add_(lowest)
    ids, shares = None, None
    if "ids" in stored:
        raw = stored["ids"].astype(np.int64)
        ids = torch.from_numpy(np.where(raw == np.iinfo(stored["ids"].dtype).max, UNUSED, raw).astype(np.int32))
        logprobs.masked_fill_(ids == UNUSED, NO_MASS)
    mass = logprobs.logsumexp(-1, keepdim=True)
    logprobs -= mass if facts.kind == "dense" else mass.clamp(min=0)
    if "counts" in stored:
        shares = torch.from_numpy(stored["counts"].astype(np.float32)) / facts.k
    log_norms = torch.zeros((*valid.shape, len(facts.temperatures)))
    if "log_norms" in stored:
        others = [index for index, temperature in enumerate(facts.temperatures) if temperature != 1.0]
        log_norms[..., others] = torch.from_numpy(stored["log_norms"].astype(np.float32))
    return TeacherSignal(logprobs=logprobs, log_norms=log_norms, valid=valid, ids=ids, shares=shares)


def write_rows(path: Path, facts: CacheFacts, row_ids: Sequence[int], rows: Sequence[Row]) -> None:
    """One parquet file; the same rows always give the same bytes."""
    import_parquet()
    import pyarrow as pa

    length = len(rows[0]["logprobs"])
    content = {"row_id": pa.array(row_ids, type=pa.int64())}
    for name, (dtype, count) in columns_of(facts).items():
        width = length * count * dtype.itemsize
        if width > LARGEST_CELL:
            raise ValueError(
                f"One row of the cache would need {width / 1e9:.1f} GB for {name} ({length} positions of {count} values). "
                "Use --kind topk or sampled, or preprocess into shorter rows."
            )
        cells = pa.py_buffer(np.stack([row[name] for row in rows]).astype(dtype).tobytes())
        content[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, cells])
    write_parquet(
        path,
        pa.table(content),
        row_group_size=max(1, ROW_GROUP_BYTES // (length * bytes_per_position(facts))),
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        write_statistics=False,  # the least and the greatest of such cells are cells themselves
    )


def read_group(facts: CacheFacts, file: Any, group: int) -> list[tuple[int, Row]]:
    """The row ids and rows of one row group of an open parquet file."""
    table = file.read_row_group(group, use_threads=False).combine_chunks()
    row_ids = table.column("row_id").to_pylist()
    stored = {}
    for name, (dtype, count) in columns_of(facts).items():
        cells = table.column(name).chunk(0)
        width = cells.type.byte_width
        whole = np.frombuffer(cells.buffers()[1], dtype="u1")[cells.offset * width :][: len(row_ids) * width]
        stored[name] = whole.view(dtype).reshape(len(row_ids), -1, count)
    return [(row_id, {name: values[row] for name, values in stored.items()}) for row, row_id in enumerate(row_ids)]
