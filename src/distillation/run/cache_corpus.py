"""Asks a teacher about every row of a packed corpus, once, and keeps the answers in a cache directory."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from dataset.common import Batch
from engine.entry import is_speaker, leave_record, user_errors
from engine.runtime.devices import Runtime, start_runtime
from src.distillation.cache.format import CACHE_FILE, Cache, CacheError, cache_facts, check_same, load_cache
from src.distillation.cache.options import CacheOptions
from src.distillation.cache.store import CacheReader, CacheWriter, rows_per_shard
from src.distillation.corpus.manifest import SPLITS, Manifest, Split, load_manifest
from src.distillation.corpus.packed_rows import PackedRows
from src.distillation.teachers.open import open_teacher

FAILED = 2


class Place(NamedTuple):
    """A row of the corpus."""

    split: Split
    number: int  # within the split
    row_id: int


def run(options: CacheOptions) -> None:
    """Print the summary of what was cached or verified, or exit with the error as one message."""
    with user_errors(if_interrupted="the shards that were finished are kept. Run the same command again to resume."):
        try:
            if options.verify:
                print(verify(options))
                return
            with closing(start_runtime("cpu" if options.teacher_url else options.device, False)) as runtime:
                summary = cache_corpus(options, runtime)
            if runtime.is_main:
                print(summary)
        except ConnectionAbortedError:
            raise  # another rank has ended and says why
        except (ValueError, OSError) as error:
            leave_record(f"error: {error}")
            if is_speaker():
                print(f"error: {error}", file=sys.stderr)
            sys.exit(FAILED)


def cache_corpus(options: CacheOptions, runtime: Runtime) -> str:
    """Make the rows that are missing, each rank every so manyth shard; returns the summary."""
    manifest = load_manifest(options.data_path)
    if (options.output_dir / CACHE_FILE).exists() and not options.resume:
        raise CacheError(f"{options.output_dir} holds a cache. Choose another --output-dir, or resume with --resume.")
    wanted = _places(manifest, options.split, options.max_sequences)
    teacher = open_teacher(
        options.teacher(),
        manifest,
        temperatures=options.temperature,
        api_key=options.api_key,
    )
    try:
        facts = cache_facts(teacher.facts, manifest, options.value_dtype)
        shard_rows = options.shard_size or rows_per_shard(facts, manifest.max_seq_length)
        if not runtime.is_main:
            runtime.barrier()  # until the main rank has locked the cache and removed what a killed run left
        writer = CacheWriter(options.output_dir, facts, manifest, shard_rows, is_main=runtime.is_main)
        try:
            if runtime.is_main:
                _check_all(options.output_dir, writer.cache, manifest)
                runtime.barrier()
            missing = [place for place in wanted if place.row_id not in writer]
            groups = [missing[first : first + shard_rows] for first in range(0, len(missing), shard_rows)]
            splits = [split for split in SPLITS if any(place.split == split for place in missing)]
            readers = {split: PackedRows(options.data_path, split) for split in splits}
            shards = list(zip(writer.free_numbers(len(groups)), groups, strict=True))
            with tqdm(
                total=len(wanted),
                initial=len(wanted) - len(missing),
                desc="asking",
                unit=" rows",
                disable=not runtime.is_main,
            ) as bar:
                for first in range(0, len(shards), runtime.world_size):
                    of_ranks = shards[first : first + runtime.world_size]
                    for number, places in of_ranks[runtime.rank :][:1]:
                        for batch in _batches(places, readers, options.batch_size):
                            writer.add(batch["row_id"].tolist(), teacher.signal(batch), flushes=False)
                            bar.update(len(batch["row_id"]))
                        writer.write_shard(number)
                    runtime.barrier()  # all shards of this round are on disk
                    for number, places in of_ranks if runtime.is_main else ():
                        writer.name_shard(number, [place.row_id for place in places])
                    bar.update(sum(len(places) for _, places in of_ranks[1:]))
        finally:
            # A shard that an interruption cut short would not be the one of an uninterrupted run.
            writer.abandon()
    finally:
        teacher.close()
    return _summary(options.output_dir, writer.cache, len(missing), manifest)


def verify(options: CacheOptions) -> str:
    """Check that a cache is whole and of this corpus; returns the summary."""
    manifest, cache = load_manifest(options.data_path), load_cache(options.output_dir)
    expected = cache.facts.model_copy(update={"corpus": manifest.fingerprint})
    check_same(options.output_dir, cache, expected, manifest)
    _check_all(options.output_dir, cache, manifest)
    return _summary(options.output_dir, cache, 0, manifest)


def _check_all(folder: Path, cache: Cache, manifest: Manifest) -> None:
    files = CacheReader(folder, cache, manifest).files
    for shard in tqdm(cache.shards, desc="checking", unit=" shards", disable=not cache.shards):
        files.check_sum(shard)


def _places(manifest: Manifest, split: str, limit: int | None) -> list[Place]:
    chosen: list[Split] = [name for name in SPLITS if split in (name, "both") and name in manifest.splits]
    places = []
    for name in chosen:
        shards = manifest.splits[name].shards
        row_ids = [shard.first_row_id + row for shard in shards for row in range(shard.rows)]
        places += [Place(name, index, row_id) for index, row_id in enumerate(row_ids)]
    if not places:
        raise ValueError(f"The corpus has no rows in the split {split}. Choose another --split.")
    return places[:limit]


def _batches(shard: list[Place], readers: dict[Split, PackedRows], batch_size: int) -> Iterator[Batch]:
    """Batches never cross the end of a shard or split: what stands in a shard depends on nothing before it."""
    for split, reader in readers.items():
        members = [place.number for place in shard if place.split == split]
        for start in range(0, len(members), batch_size):
            rows = members[start : start + batch_size]
            yield reader.batch(rows, len(rows))


def _summary(folder: Path, cache: Cache, num_new: int, manifest: Manifest) -> str:
    rows = sum(int(shard.is_in(manifest).sum()) for shard in cache.known_ranges(manifest).shards)
    left = sum(shard.rows for shard in cache.shards) - rows
    of_corpus = sum(facts.rows for facts in manifest.splits.values())
    num_bytes = sum(shard.bytes for shard in cache.shards)
    tokens = (rows + left) * manifest.max_seq_length
    return (
        f"{folder / CACHE_FILE}: {rows} of the corpus's {of_corpus} rows, {num_new} of them new, in {len(cache.shards)} "
        f"shards\n  {num_bytes / 1e6:.1f} MB, {num_bytes / max(tokens, 1):.0f} bytes a token"
        + (f"\n  {left} rows more are of what the corpus no longer has" if left else "")
    )
