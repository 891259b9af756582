"""The packed corpus as a teacher's tuning reads it: endless enough to train on, and a part that is held out."""

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dataset.cursor import CursorConfig, RowDataset
from engine.build.loader import load_batches, train_items
from engine.runtime.devices import Runtime
from engine.train.loop import RunData
from src.distillation.corpus.manifest import Split, TokenizerFacts
from src.distillation.corpus.packed_rows import PackedRows
from src.distillation.tuning.config import TeacherFtConfig

HELD_OUT: Split = "val"


@dataclass(frozen=True)
class OpenedCorpus:
    data: RunData
    seq_len: int
    num_batches: int  # of an epoch
    fingerprint: str


def open_corpus(config: TeacherFtConfig, folder: Path, tokenizer: TokenizerFacts, runtime: Runtime) -> OpenedCorpus:
    rows = config.physical_batch_size * runtime.world_size
    packed = PackedRows(folder, "train", tokenizer=tokenizer)

    def cursor(batch_size: int, is_test: bool) -> CursorConfig:
        return CursorConfig(batch_size, is_test, seed=config.seed, rank=runtime.rank, world_size=runtime.world_size)

    train = RowDataset(packed, cursor(rows * config.gradient_accumulation_steps, False), "train")
    held_out = RowDataset(PackedRows(folder, HELD_OUT, tokenizer=tokenizer), cursor(rows, True), HELD_OUT)

    num_held_out = None if config.eval_samples is None else math.ceil(config.eval_samples / rows)
    data = RunData(
        train_items=train_items(train, config.num_workers, runtime),
        eval_items=lambda: islice(load_batches(held_out, config.num_workers, runtime), num_held_out),
        eval_sets=[HELD_OUT],
    )
    manifest = packed.manifest
    return OpenedCorpus(data, manifest.max_seq_length, train.num_batches(), manifest.fingerprint)
