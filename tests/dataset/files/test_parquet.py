"""Parquet files are read as a stream."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.files.parquet import count_parquet_records, parquet_records


def test_a_row_group_is_never_whole_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(500).hex() for _ in range(20_000)]  # 20 MB that do not pack well
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    before = pa.total_allocated_bytes()
    most = 0
    for number, record in enumerate(parquet_records(tmp_path / "a.parquet")):
        assert record == {"text": texts[number]}
        most = max(most, pa.total_allocated_bytes() - before)
    assert number + 1 == count_parquet_records(tmp_path / "a.parquet") == 20_000
    assert most < 8e6
