"""Turns files of JSON lines into a packed corpus: parquet shards and a manifest, file after file, each all or nothing."""

import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dataset.files.disk import disk_errors, exclusive_lock, file_sha256
from dataset.files.parquet import import_parquet
from dataset.text.encoder_pool import EncoderPool
from dataset.tokenization.lookup import open_tokenizer
from src.distillation.corpus.documents import (
    POOL_PAYS_BYTES,
    CorpusDocuments,
    DocumentEncoder,
    Line,
    find_jsonl,
    read_chunks,
)
from src.distillation.corpus.manifest import (
    MANIFEST_FILE,
    SPLITS,
    Manifest,
    Source,
    Split,
    TokenizerFacts,
    load_manifest,
    read_note,
    tokenizer_facts,
)
from src.distillation.corpus.options import PreprocessOptions
from src.distillation.corpus.parts import PartFacts, PartSource, begin_part, files_of_part, open_parts, part_folder
from src.distillation.corpus.shards import (
    ShardWriter,
    cut_into_pieces,
    read_shard,
    remove_unnamed_shards,
    rows_per_shard,
)

USUAL_COMPRESSION = 5  # of text by gzip and zstd


@dataclass(frozen=True)
class Todo:
    file: Path
    path: str  # below the input folder
    sha256: str

    @property
    def text_bytes(self) -> int:
        """About how much text the file holds."""
        return self.file.stat().st_size * (1 if self.file.suffix == ".jsonl" else USUAL_COMPRESSION)


def shard_folder(path: str) -> str:
    """Of the shards of a file; unlike for a.jsonl and a.jsonl.gz, and for equal names in different folders."""
    return re.sub(r"\.jsonl(?=(\.gz|\.zst)?$)", "", path)


def preprocess(options: PreprocessOptions) -> str:
    """Do what is to be done; the summary. Whatever goes wrong, the output folder holds only what its manifest says."""
    started = time.monotonic()
    files = find_jsonl(options.input, options.recursive)
    import_parquet()
    facts = tokenizer_facts(options.tokenizer, open_tokenizer(options.tokenizer))
    part = options.part_numbers
    if part is not None:
        files = files_of_part(files, *part)
        options = options.model_copy(update={"output": part_folder(options.output, *part)})
    with exclusive_lock(options.output):
        manifest = _start(options, facts)
        root = options.input if options.input.is_dir() else options.input.parent
        items = [
            Todo(file, file.relative_to(root).as_posix(), file_sha256(file))
            for file in tqdm(files, desc="checking", unit=" files")
        ]
        todo = [item for item in items if not _is_done(item, manifest, options.output)]
        folders = Counter(shard_folder(file.relative_to(root).as_posix()) for file in files)
        if twice := [folder for folder, count in folders.items() if count > 1]:
            raise ValueError(f"Two input files would share the folder {twice[0]} of their shards. Rename one of them.")
        limit = rows_per_shard(options.shard_bytes, manifest.max_seq_length)
        if part is not None:
            begin_part(options.output, PartFacts(number=part[0], of=part[1], rows_per_shard=limit), options.force)
        parts = (
            open_parts(options.output, manifest, limit, {item.path: item.sha256 for item in items})
            if options.join
            else {}
        )
        num_bytes = sum(item.file.stat().st_size for item in todo)
        is_much = sum(item.text_bytes for item in todo) >= POOL_PAYS_BYTES and not parts
        num_workers = options.num_workers if is_much else 1
        remove_unnamed_shards(options.output)
        try:
            with (
                EncoderPool(partial(DocumentEncoder, options.tokenizer, options.val_fraction), num_workers) as pool,
                tqdm(total=num_bytes, desc="tokenizing", unit="B", unit_scale=True) as bar,
            ):
                for item in todo:
                    bar.set_postfix_str(item.path)
                    writers = {
                        split: ShardWriter(
                            options.output, shard_folder(item.path), item.path, split, limit, manifest.max_seq_length
                        )
                        for split in SPLITS
                    }
                    if parts:
                        made = _take_file(parts[item.path], manifest, writers)
                        bar.update(made.bytes)
                    else:
                        made = _pack_file(item, manifest, pool, bar, writers)
                    manifest = _with_source(manifest, made, writers, options.output)
        finally:
            remove_unnamed_shards(options.output)
    if part is not None and not manifest.sources:  # more parts than files
        manifest.save(options.output)
    elif not manifest.shards and part is None:
        raise ValueError(f"{options.input} holds no document with text, so there is nothing to train on.")
    elif not manifest.splits["val"].rows:
        print("note: no document was held out for validation; raise --val-fraction", file=sys.stderr)
    new_tokens = sum(source.tokens for item in todo if (source := manifest.source(item.path)))
    return _summary(options.output, manifest, len(todo), new_tokens, time.monotonic() - started)


def _pack_file(
    item: Todo,
    manifest: Manifest,
    pool: EncoderPool[list[Line], CorpusDocuments],
    bar: tqdm,
    writers: Mapping[Split, ShardWriter],
) -> Source:
    """Write all of one file."""
    length, pad_id = manifest.max_seq_length, manifest.tokenizer.pad_id
    num_documents, num_tokens, skipped, next_row_id = 0, 0, Counter[str](), manifest.next_row_id
    for documents in pool.encode(read_chunks(item.file, bar.update)):
        for split, mask in zip(SPLITS, (~documents.is_val, documents.is_val), strict=True):
            next_row_id = writers[split].add(cut_into_pieces(documents, mask, length), next_row_id, pad_id)
        num_documents += len(documents.lengths)
        num_tokens += len(documents.ids)
        skipped += documents.skipped
    for writer in writers.values():
        next_row_id = writer.flush(next_row_id, pad_id)
    note = read_note(item.file)
    return Source(
        path=item.path,
        sha256=item.sha256,
        bytes=item.file.stat().st_size,
        documents=num_documents,
        tokens=num_tokens,
        skipped=dict(skipped),
        repository=note.repository if note else None,
        license=note.license if note else None,
    )


def _take_file(part: PartSource, manifest: Manifest, writers: Mapping[Split, ShardWriter]) -> Source:
    """Write what a part has made of one file, its rows numbered as if they had been made here."""
    shards = [
        (shard.first_row_id, split, shard)
        for split, facts in part.manifest.splits.items()
        for shard in facts.shards
        if shard.source == part.source.path
    ]
    next_row_id = manifest.next_row_id
    for _, split, shard in sorted(shards, key=lambda found: found[0]):
        next_row_id = writers[split].write(read_shard(part.folder, shard), next_row_id)
    return part.source


def _with_source(manifest: Manifest, source: Source, writers: Mapping[Split, ShardWriter], output: Path) -> Manifest:
    """Say in the manifest what has been written of one file, all of it."""
    manifest = manifest.with_source(source, {split: writer.shards for split, writer in writers.items()})
    with disk_errors(output):
        for writer in writers.values():
            writer.name_all()
        manifest.save(output)
    return manifest


def _start(options: PreprocessOptions, facts: TokenizerFacts) -> Manifest:
    """The corpus that is added to, or an empty one."""
    empty = Manifest(tokenizer=facts, max_seq_length=options.max_seq_length, val_fraction=options.val_fraction)
    if not (options.output / MANIFEST_FILE).exists():
        return empty
    manifest = load_manifest(options.output)  # also with --force: what another program made is not replaced
    if options.force:
        return empty
    if not options.skip_existing:
        raise ValueError(
            f"{options.output} already holds {len(manifest.sources)} preprocessed files. Add --skip-existing to keep them "
            "and add what is new, or --force to make everything again."
        )
    manifest.check_made_for(options.output, facts, options.max_seq_length)
    if manifest.val_fraction != options.val_fraction:
        raise ValueError(
            f"{options.output} was made with --val-fraction {manifest.val_fraction}, not {options.val_fraction}: held-out "
            "documents would get into training. Use the same, another folder, or --force."
        )
    return manifest


def _is_done(item: Todo, manifest: Manifest, output: Path) -> bool:
    source = manifest.source(item.path)
    return source is not None and source.sha256 == item.sha256 and manifest.are_files_in(output, item.path)


def _summary(output: Path, manifest: Manifest, num_new: int, new_tokens: int, seconds: float) -> str:
    skipped = sum((Counter(source.skipped) for source in manifest.sources), Counter[str]())
    left_out = "; ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "none"
    lines = [
        f"{output / MANIFEST_FILE}: {len(manifest.sources)} files, {num_new} of them new "
        f"({new_tokens} tokens in {seconds:.1f} s)",
        f"  skipped records: {left_out}",
    ]
    for split, facts in manifest.splits.items():
        full = facts.tokens / max(facts.rows * manifest.max_seq_length, 1)
        lines.append(
            f"  {split}: {facts.tokens} tokens of {facts.documents} documents in {facts.rows} rows of "
            f"{manifest.max_seq_length} ({full:.1%} full), {len(facts.shards)} shards"
        )
    return "\n".join(lines)
