"""The packed corpora of a distillation: what is trained on, what is held out, and their tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.cursor import CursorConfig, RowDataset
from dataset.tokenization.lookup import open_tokenizer
from engine.runtime.devices import Runtime
from src.distillation.config import DistillConfig
from src.distillation.corpus.manifest import Manifest, Split, TokenizerFacts, load_manifest, tokenizer_facts
from src.distillation.corpus.packed_rows import PackedRows

HELD_OUT: Split = "val"  # the name of what is evaluated, whatever split it is


@dataclass(frozen=True)
class Corpora:
    """Rows to learn from and rows that are held out."""

    train: RowDataset
    held_out: RowDataset | None
    tokenizer: TokenizerFacts
    tokenizer_files: Sequence[Path]
    manifest: Manifest  # of what is trained on
    held_out_fingerprint: str | None
    held_out_ids: NDArray[np.int64]  # of the held-out rows that are read


def open_corpora(config: DistillConfig, runtime: Runtime, *, split: Split = "val") -> Corpora:
    """Both readers of this rank; with `split` train the training rows are evaluated."""
    folder = Path(config.train_data_path)
    manifest = load_manifest(folder)
    facts, files = manifest.tokenizer, []
    if config.tokenizer_name is not None:
        tokenizer = open_tokenizer(config.tokenizer_name)
        facts, files = tokenizer_facts(config.tokenizer_name, tokenizer), tokenizer.files()
    manifest.check_made_for(folder, facts, config.max_seq_length)
    found = _held_out_of(config, manifest) if split == "val" else (folder, manifest, split)

    most, eval_rows = config.eval_perplexity_samples, config.physical_batch_size * runtime.world_size

    def reader(place: Path, part: Split, name: Split, rows: int) -> RowDataset:
        packed = PackedRows(place, part, config.max_seq_length, facts, config.verify_data)
        return packed_reader(packed, name, rows, runtime, seed=config.seed, most_held_out=most)

    return Corpora(
        train=reader(folder, "train", "train", config.rows_per_step),
        held_out=None if found is None else reader(found[0], found[2], HELD_OUT, eval_rows),
        tokenizer=facts,
        tokenizer_files=files,
        manifest=manifest,
        held_out_fingerprint=None if found is None else found[1].fingerprint,
        held_out_ids=np.zeros(0, np.int64) if found is None else found[1].row_ids(found[2])[:most],
    )


def packed_reader(
    packed: PackedRows, name: Split, rows: int, runtime: Runtime, *, seed: int, most_held_out: int | None
) -> RowDataset:
    """This rank's reader of packed rows, `rows` of them a batch of all ranks: passes in the order that the seed draws or,
    of what is held out, the first ones once."""
    cursor = CursorConfig(
        global_batch_size=rows,
        is_test=name == HELD_OUT,
        seed=seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
        test_rows=most_held_out,
    )
    return RowDataset(packed, cursor, name)


def _held_out_of(config: DistillConfig, train: Manifest) -> tuple[Path, Manifest, Split] | None:
    """Folder, manifest and split of what is evaluated: the documents that the training corpus holds out, or those of
    another corpus, all of them if that one holds none out; None where there is nothing."""
    folder, other = Path(config.train_data_path), Path(config.val_data_path or config.train_data_path)
    same = folder.expanduser().resolve() == other.expanduser().resolve()
    manifest = train if same else load_manifest(other)
    if "val" in manifest.splits and manifest.splits["val"].rows:
        return other, manifest, "val"
    return None if same else (other, manifest, "train")
