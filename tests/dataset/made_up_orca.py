"""A made-up corpus of any size in OpenOrca's form, written record by record."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from dataset.text.sample_corpus import train_tokenizer

SYSTEMS = ("", "You are a helpful assistant.", "Explain it step by step and justify your answer.")
OWN_WORDS = 8  # of each record
ROWS_OF_A_GROUP = 10_000  # of a Parquet file


def orca_records(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Some 175 tokens each, of common words and of some that no other record has, which take the longest to tokenize."""
    draw = Random(seed)
    syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(3000)]
    commonness = [1 / rank for rank in range(1, len(words) + 1)]
    sentences = [" ".join(draw.choices(words, commonness, k=draw.randint(8, 20))) + "." for _ in range(5000)]
    for number in range(count):
        asked, *said = draw.choices(sentences, k=draw.randint(3, 7))
        own = [f"{draw.getrandbits(20):x}" for _ in range(OWN_WORDS)]
        yield {
            "id": f"made.{number}",
            "system_prompt": draw.choice(SYSTEMS),
            "question": f"{number}: {asked}",
            "response": " ".join([*said, *own]),
        }


def write_json_lines(file: Path, count: int) -> Path:
    with open(file, "w") as out:
        out.writelines(f"{json.dumps(record)}\n" for record in orca_records(count))
    return file


def write_parquet(file: Path, count: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = orca_records(count)
    form = pa.schema([(name, pa.string()) for name in next(orca_records(1))])
    with pq.ParquetWriter(file, form) as out:
        while rows := list(islice(records, ROWS_OF_A_GROUP)):
            out.write_table(pa.Table.from_pylist(rows, form))
    return file


def write_tokenizer(file: Path) -> Path:
    texts = [text for record in orca_records(2000) for text in (record["question"], record["response"])]
    file.write_bytes(train_tokenizer(texts, vocab_size=4000))
    return file
