"""The packed corpora of a distillation: what is trained on, what is held out, and their tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset.cursor import CursorConfig, RowDataset
from dataset.tokenization.lookup import open_tokenizer
from src.distillation.config import DistillConfig
from src.distillation.corpus.manifest import Manifest, Split, TokenizerFacts, load_manifest, tokenizer_facts
from src.distillation.corpus.packed_rows import PackedRows


@dataclass(frozen=True)
class Corpora:
    """Rows to learn from and rows that are held out."""

    train: RowDataset
    held_out: RowDataset | None
    tokenizer: TokenizerFacts
    tokenizer_files: Sequence[Path]
    manifest: Manifest  # of what is trained on
    held_out_fingerprint: str | None


def open_corpora(config: DistillConfig, *, split: Split = "val") -> Corpora:
    """Both readers; with `split` train the training rows are evaluated."""
    folder = Path(config.train_data_path)
    manifest = load_manifest(folder)
    facts, files = manifest.tokenizer, []
    if config.tokenizer_name is not None:
        tokenizer = open_tokenizer(config.tokenizer_name)
        facts, files = tokenizer_facts(config.tokenizer_name, tokenizer), tokenizer.files()
    manifest.check_made_for(folder, facts, config.max_seq_length)
    found = _held_out_of(config, manifest) if split == "val" else (folder, manifest, split)

    def reader(place: Path, part: Split, rows: int, is_test: bool) -> RowDataset:
        packed = PackedRows(place, part, config.max_seq_length, facts, config.verify_data)
        return RowDataset(packed, CursorConfig(rows, is_test, seed=config.seed), part)

    return Corpora(
        train=reader(folder, "train", config.rows_per_step, False),
        held_out=None if found is None else reader(found[0], found[2], config.physical_batch_size, True),
        tokenizer=facts,
        tokenizer_files=files,
        manifest=manifest,
        held_out_fingerprint=None if found is None else found[1].fingerprint,
    )


def _held_out_of(config: DistillConfig, train: Manifest) -> tuple[Path, Manifest, Split] | None:
    """Folder, manifest and split of what is evaluated: the documents that the training corpus holds out, or those of
    another corpus, all of them if that one holds none out; None where there is nothing."""
    folder, other = Path(config.train_data_path), Path(config.val_data_path or config.train_data_path)
    same = folder.expanduser().resolve() == other.expanduser().resolve()
    manifest = train if same else load_manifest(other)
    if "val" in manifest.splits and manifest.splits["val"].rows:
        return other, manifest, "val"
    return None if same else (other, manifest, "train")
