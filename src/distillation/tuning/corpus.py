"""The packed corpus as a teacher's tuning reads it: endless enough to train on, and a part that is held out."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from dataset.common import LoaderItem
from engine.runtime.devices import Runtime
from engine.train.loop import RunData
from src.distillation.corpus.manifest import Split, TokenizerFacts, load_manifest
from src.distillation.corpus.reader import PackedDataset, PackedDatasetConfig
from src.distillation.tuning.config import TeacherFtConfig

HELD_OUT: Split = "val"


@dataclass(frozen=True)
class OpenedCorpus:
    data: RunData
    seq_len: int
    num_batches: int  # of an epoch
    fingerprint: str


def open_corpus(config: TeacherFtConfig, folder: Path, tokenizer: TokenizerFacts, runtime: Runtime) -> OpenedCorpus:
    seq_len = load_manifest(folder).max_seq_length
    rows = config.physical_batch_size * runtime.world_size
    common: dict[str, Any] = {"seq_len": seq_len, "tokenizer": tokenizer, "seed": config.seed}
    common |= {"rank": runtime.rank, "world_size": runtime.world_size}
    batch_size = rows * config.gradient_accumulation_steps
    train = PackedDataset(PackedDatasetConfig(folder, global_batch_size=batch_size, **common))
    judged = PackedDataset(PackedDatasetConfig(folder, global_batch_size=rows, split=HELD_OUT, is_test=True, **common))

    def loader(dataset: PackedDataset) -> Iterable[LoaderItem]:
        on_cuda = runtime.device.type == "cuda"
        return DataLoader(dataset, batch_size=None, num_workers=config.num_workers, pin_memory=on_cuda)

    def train_items(iteration: int, batches_done: int) -> Iterable[LoaderItem]:
        train.start_from(iteration, batches_done)
        return loader(train)

    num_judged = None if config.eval_samples is None else math.ceil(config.eval_samples / rows)
    data = RunData(train_items=train_items, eval_items=lambda: islice(loader(judged), num_judged), eval_sets=[HELD_OUT])
    return OpenedCorpus(data, seq_len, train.num_batches(), train.metadata.fingerprint)
