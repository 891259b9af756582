"""Asks a teacher about every row of a packed corpus, once, and keeps the answers in a folder."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dataset.common import Batch
from dataset.files.flags import not_negative, positive
from src.distillation.cache.format import CACHE_FILE, Cache, CacheError, cache_facts, load_cache
from src.distillation.cache.rows import bytes_per_position
from src.distillation.cache.store import MAX_SHARD_ROWS, SHARD_BYTES, CacheReader, CacheWriter
from src.distillation.corpus.manifest import SPLITS, Manifest, Split, load_manifest
from src.distillation.corpus.reader import PackedDataset, PackedDatasetConfig
from src.distillation.teachers.completion_client import API_KEY
from src.distillation.teachers.open import TeacherSpec, open_teacher

TIMEOUT, RETRIES, WORKERS = 60.0, 5, 4  # of requests to a server
FAILED = 2
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


@dataclass(frozen=True)
class Place:
    """A row of the corpus: its number within a split, and the one that it has everywhere."""

    split: Split
    index: int
    row_id: int


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    try:
        print(verify(args) if args.verify else cache_corpus(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: the shards that were finished are kept. Run the same command again to go on.",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Ask a teacher about every row of a packed corpus and keep the answers, for teacher_mode=cached. "
        "Whatever ends the program, the same command goes on where it stood, to the same bytes.",
    )
    parser.add_argument(
        "--data-path", type=Path, required=True, help="a packed corpus, of data/preprocess_to_parquet.py"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help=f"the folder of the shards and {CACHE_FILE}")
    parser.add_argument(
        "--teacher-model",
        help="a folder or a name of the Hub; with --teacher-url its name there (default: its only one)",
    )
    parser.add_argument("--adapter-path", help="folder of a LoRA adapter for the model")
    parser.add_argument("--device", default="auto", help="of the model: auto, cuda, cuda:<number>, mps or cpu")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="of the model's weights"
    )
    parser.add_argument("--teacher-url", help="a server of prompt log-probabilities such as vLLM's, instead of a model")
    parser.add_argument("--api-key", help=f"of the server; safer in the environment as {API_KEY}")
    parser.add_argument("--timeout", type=float, help=f"seconds of a request (default {TIMEOUT:g})")
    parser.add_argument("--max-retries", type=not_negative, help=f"of a request (default {RETRIES})")
    parser.add_argument("--workers", type=positive, help=f"requests at a time (default {WORKERS})")
    parser.add_argument(
        "--kind", choices=("topk", "sampled", "dense"), default="topk",
        help="the likeliest ids of a position, drawn ones, or all (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--topk", type=positive, default=64, help="how many ids of a position (default %(default)s)")
    parser.add_argument("--seed", type=not_negative, default=42, help="of --kind sampled (default %(default)s)")
    parser.add_argument(
        "--temperature", type=float, action="append", default=[],
        help="that training may ask for beside 1; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--value-dtype", choices=("fp16", "u8"), default="fp16",
        help="u8 takes less room, at ten times the (small) error (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=8, help="rows that are asked about at once")
    parser.add_argument(
        "--shard-size", type=positive,
        help=f"rows of a shard (default: those of {SHARD_BYTES >> 20} MiB, {MAX_SHARD_ROWS} at most); memory follows it, "
        "and so does what an interruption costs",
    )  # fmt: skip
    parser.add_argument("--split", choices=(*SPLITS, "both"), default="both", help="default: both")
    parser.add_argument("--max-sequences", type=positive, help="no more rows than that (default: all)")
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on with a cache that is there (default); --no-resume refuses one",
    )  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="only read every shard of the cache and check it")
    args = parser.parse_args(argv)
    if not args.verify and not (args.teacher_model or args.teacher_url):
        parser.error("one of --teacher-model and --teacher-url is needed")
    if args.teacher_url and (args.device, args.dtype) != ("auto", "auto"):
        parser.error("--device and --dtype are for a model in this process, not for --teacher-url")
    of_server = (args.api_key, args.timeout, args.max_retries, args.workers)
    if not args.teacher_url and any(value is not None for value in of_server):
        parser.error("--api-key, --timeout, --max-retries and --workers need --teacher-url")
    return args


def cache_corpus(args: argparse.Namespace) -> str:
    """Make the rows that are missing; the summary."""
    manifest = load_manifest(args.data_path)
    _check_output(args.output_dir, args.resume)
    wanted = _places(manifest, args.split, args.max_sequences)
    tokenizer = manifest.tokenizer
    teacher = open_teacher(_spec(args), tokenizer, manifest.fingerprint, tokenizer.vocab_size)
    try:
        facts = cache_facts(teacher.facts, tokenizer, manifest.fingerprint, args.value_dtype)
        row_bytes = bytes_per_position(facts) * manifest.max_seq_length
        shard_rows = args.shard_size or min(max(1, SHARD_BYTES // row_bytes), MAX_SHARD_ROWS)
        writer = CacheWriter(args.output_dir, facts, shard_rows)
        try:
            _check_all(args.output_dir, writer.cache)
            missing = [place for place in wanted if place.row_id not in writer]
            with tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc="asking", unit=" rows") as bar:
                for batch in _batches(missing, shard_rows, args):
                    writer.add(batch["row_id"].tolist(), teacher.signal(batch))
                    bar.update(len(batch["row_id"]))
            writer.flush()
        finally:
            # A shard that an interruption cut short would not be the one of an uninterrupted run.
            writer.abandon()
    finally:
        teacher.close()
    return _summary(args.output_dir, writer.cache, len(missing), manifest)


def verify(args: argparse.Namespace) -> str:
    """Check that a cache is whole and of this corpus."""
    manifest, cache = load_manifest(args.data_path), load_cache(args.output_dir)
    if cache.facts.corpus != manifest.fingerprint:
        raise CacheError(
            f"{args.output_dir / CACHE_FILE} holds rows of another corpus ({cache.facts.corpus[:12]}) than "
            f"{args.data_path} ({manifest.fingerprint[:12]}). Name the corpus it was made of, or make the cache anew in "
            "another folder."
        )
    _check_all(args.output_dir, cache)
    return _summary(args.output_dir, cache, 0, manifest)


def _spec(args: argparse.Namespace) -> TeacherSpec:
    return TeacherSpec(
        mode="network" if args.teacher_url else "direct",
        model=args.teacher_model,
        adapter_path=args.adapter_path,
        device=args.device,
        dtype=args.dtype,
        kind=args.kind,
        k=args.topk,
        temperatures=(1.0, *args.temperature),
        url=args.teacher_url,
        api_key=args.api_key,
        timeout=TIMEOUT if args.timeout is None else args.timeout,
        max_retries=RETRIES if args.max_retries is None else args.max_retries,
        concurrency=args.workers or WORKERS,
        seed=args.seed,
    )


def _check_output(folder: Path, resume: bool) -> None:
    if (folder / CACHE_FILE).exists() and not resume:
        raise CacheError(f"{folder} holds a cache already. Choose another --output-dir, or go on with --resume.")


def _check_all(folder: Path, cache: Cache) -> None:
    reader = CacheReader(folder, cache)
    with tqdm(total=len(cache.shards), desc="checking", unit=" shards", disable=not cache.shards) as bar:
        reader.verify(lambda shard: bar.update())


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


def _batches(places: list[Place], shard_rows: int, args: argparse.Namespace) -> Iterator[Batch]:
    """Batches never cross the end of a shard or split: what stands in a shard depends on nothing before it."""
    readers: dict[Split, PackedDataset] = {}
    for first in range(0, len(places), shard_rows):
        shard = places[first : first + shard_rows]
        for split in SPLITS:
            members = [place.index for place in shard if place.split == split]
            for start in range(0, len(members), args.batch_size):
                if split not in readers:
                    readers[split] = _open_split(args.data_path, split)
                yield readers[split].batch_of(members[start : start + args.batch_size])


def _open_split(folder: Path, split: Split) -> PackedDataset:
    seq_len = load_manifest(folder).max_seq_length
    return PackedDataset(PackedDatasetConfig(folder, seq_len, global_batch_size=1, split=split, is_test=True))


def _summary(folder: Path, cache: Cache, num_new: int, manifest: Manifest) -> str:
    rows = sum(shard.num_rows for shard in cache.shards)
    of_corpus = sum(facts.rows for facts in manifest.splits.values())
    num_bytes = sum(shard.bytes for shard in cache.shards)
    tokens = rows * manifest.max_seq_length
    return (
        f"{folder / CACHE_FILE}: {rows} of the corpus's {of_corpus} rows, {num_new} of them new, in {len(cache.shards)} "
        f"shards\n  {num_bytes / 1e6:.1f} MB, {num_bytes / max(tokens, 1):.0f} bytes a token"
    )
