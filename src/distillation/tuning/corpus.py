"""The packed corpus as a teacher's tuning reads it: endless enough to train on, and a part that is held out."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch.utils.data import DataLoader

from dataset.common import LoaderItem
from dataset.cursor import CursorConfig, RowDataset
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
    judged = RowDataset(PackedRows(folder, HELD_OUT, tokenizer=tokenizer), cursor(rows, True), HELD_OUT)

    def loader(dataset: RowDataset) -> Iterable[LoaderItem]:
        on_cuda = runtime.device.type == "cuda"
        return DataLoader(dataset, batch_size=None, num_workers=config.num_workers, pin_memory=on_cuda)

    def train_items(iteration: int, batches_done: int) -> Iterable[LoaderItem]:
        train.start_from(iteration, batches_done)
        return loader(train)

    num_judged = None if config.eval_samples is None else math.ceil(config.eval_samples / rows)
    data = RunData(train_items=train_items, eval_items=lambda: islice(loader(judged), num_judged), eval_sets=[HELD_OUT])
    manifest = packed.manifest
    return OpenedCorpus(data, manifest.max_seq_length, train.num_batches(), manifest.fingerprint)
