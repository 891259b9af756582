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
    fingerprint: str
    held_out_fingerprint: str | None


def open_corpora(config: DistillConfig, *, split: Split = "val") -> Corpora:
    """Both readers; with `split` train the training rows are evaluated."""
    folder = Path(config.train_data_path)
    manifest = load_manifest(folder)
    tokenizer, files = _same_tokenizer(config, folder, manifest)
    found = _held_out_of(config, manifest) if split == "val" else (folder, manifest, split)

    def reader(place: Path, part: Split, rows: int, is_test: bool) -> RowDataset:
        packed = PackedRows(place, part, config.max_seq_length, tokenizer, config.verify_data)
        return RowDataset(packed, CursorConfig(rows, is_test, seed=config.seed), part)

    return Corpora(
        train=reader(folder, "train", config.rows_per_step, False),
        held_out=None if found is None else reader(found[0], found[2], config.physical_batch_size, True),
        tokenizer=tokenizer,
        tokenizer_files=files,
        fingerprint=manifest.fingerprint,
        held_out_fingerprint=None if found is None else found[1].fingerprint,
    )


def _same_tokenizer(config: DistillConfig, folder: Path, manifest: Manifest) -> tuple[TokenizerFacts, list[Path]]:
    """The tokenizer of the corpus, checked against the one that is named, and the files that hold it."""
    if config.tokenizer_name is None:
        manifest.check_made_for(folder, None, config.max_seq_length)
        return manifest.tokenizer, []
    tokenizer = open_tokenizer(config.tokenizer_name)
    facts = tokenizer_facts(config.tokenizer_name, tokenizer)
    manifest.check_made_for(folder, facts, config.max_seq_length)
    return facts, tokenizer.files()


def _held_out_of(config: DistillConfig, train: Manifest) -> tuple[Path, Manifest, Split] | None:
    """Folder, manifest and split of what is evaluated: the documents that the training corpus holds out, or those of
    another corpus, all of them if that one holds none out; None where there is nothing."""
    same = config.val_data_path is None or _real(config.val_data_path) == _real(config.train_data_path)
    folder = Path(config.train_data_path if same else str(config.val_data_path))
    manifest = train if same else load_manifest(folder)
    if _rows(manifest, "val"):
        return folder, manifest, "val"
    return None if same else (folder, manifest, "train")


def _rows(manifest: Manifest, split: Split) -> int:
    facts = manifest.splits.get(split)
    return facts.rows if facts else 0


def _real(path: str) -> Path:
    return Path(path).expanduser().resolve()
