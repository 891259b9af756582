"""Which rows of a cache a corpus still has, after files of it were added, replaced and made again."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from src.distillation.cache.format import CacheShard, ranges_of
from src.distillation.corpus.manifest import Manifest, Shard, Source, TokenizerFacts

TOKENIZER = TokenizerFacts(name="t", sha256="t", vocab_size=9, bos_id=None, eos_id=1, pad_id=1)
EMPTY = Manifest(tokenizer=TOKENIZER, max_seq_length=4, val_fraction=0.1)


def with_file(corpus: Manifest, path: str, text: int, train: int, val: int) -> Manifest:
    """The corpus with a file, in the place of the one of that path; equal texts give equal shards."""
    shards: dict[Any, list[Shard]] = {}
    first = corpus.next_row_id
    for split, rows in (("train", train), ("val", val)):
        facts = {"file": f"{path}/{split}", "source": path, "first_row_id": first, "rows": rows, "documents": 1}
        facts |= {"tokens": 1, "bytes": 1, "sha256": f"{path} {split} {text} {rows} {first}"}
        shards[split] = [Shard.model_validate(facts)] if rows else []
        first += rows
    return corpus.with_source(Source(path=path, sha256="", bytes=0, documents=0, tokens=0, skipped={}), shards)


def contents(corpus: Manifest) -> dict[int, str]:
    """What is in each row."""
    return {row: sha256 for first, rows, sha256 in corpus.row_ranges for row in range(first, first + rows)}


STEPS = st.tuples(
    st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 4), st.integers(0, 2), st.booleans(), st.randoms()
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=8))
def test_a_row_counts_exactly_while_the_corpus_holds_what_was_asked_about(steps: list[Any]) -> None:
    corpus, recorded = EMPTY, list[tuple[CacheShard, dict[int, str]]]()
    for path, text, train, val, is_begun_again, random in steps:
        corpus = with_file(EMPTY if is_begun_again else corpus, path, text, train, val)
        asked = {row: what for row, what in contents(corpus).items() if random.random() < 0.6}
        if asked:
            runs = [(row, 1) for row in sorted(asked)]
            shard = CacheShard(
                file="shard-00000.parquet", runs=runs, bytes=1, sha256="", corpus=ranges_of(runs, corpus.row_ranges)
            )
            recorded.append((shard, asked))
        for shard, asked in recorded:
            expected = [contents(corpus).get(row) == what for row, what in sorted(asked.items())]
            assert shard.is_in(corpus).tolist() == expected
