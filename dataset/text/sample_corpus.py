"""The built-in corpus: short conversations in SlimOrca's form, and a small tokenizer that is trained on them."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from dataset.files.disk import write_file
from dataset.text.sample_tasks import TASKS, Exchange, Task
from dataset.text.template import MARKERS

Record = dict[str, Any]

VOCAB_SIZE = 896  # the fewest that give every word of the questions a piece of its own
SYSTEM_PROMPT = "Answer briefly."
SYSTEM_RATIO = 0.05  # tokens cost time, so most conversations go without


def make_sample_records(
    size: int, seed: int, test_ratio: float, task_names: Sequence[str] | None = None
) -> dict[str, list[Record]]:
    """About `size` records divided by what is asked, so that nothing in "test" is ever asked in "train".

    The order is random, and "test" holds no conversation twice. `task_names`: the kinds of questions; None: all.
    """
    rng = Random(f"sample corpus {seed}")
    tasks, weights = zip(*_chosen_tasks(task_names), strict=True)
    records: dict[str, list[Record]] = {"train": [], "test": []}
    tested: set[tuple[str, ...]] = set()
    for task in rng.choices(tasks, weights, k=size):
        exchange = task(rng)
        has_system = rng.random() < SYSTEM_RATIO
        if not _is_test(exchange, seed, test_ratio):
            records["train"].append(_record(exchange, task.__name__, has_system))
        elif exchange.messages not in tested:
            tested.add(exchange.messages)
            records["test"].append(_record(exchange, task.__name__, has_system))
    return records


def sample_tokenizer(records: Sequence[Record], folder: Path, whole: Sequence[str] = ()) -> Path:
    """The tokenizer of these records; trained in seconds, and kept under `folder` for the next time.

    Each text of `whole` is one piece wherever it stands; with such texts the others have no bytes to fall back on.
    """
    texts = list(_texts(records))
    digest = hashlib.sha256("\n".join([str(VOCAB_SIZE), *whole, *texts]).encode()).hexdigest()
    path = folder / f"sample-{digest[:12]}" / "tokenizer.model"
    if path.exists():
        return path
    write_file(path, train_tokenizer(texts, VOCAB_SIZE, whole))
    return path


def train_tokenizer(texts: Sequence[str], vocab_size: int, whole: Sequence[str] = ()) -> bytes:
    """A SentencePiece model with LLaMA's layout (unk 0, bos 1, eos 2, then `whole` or 256 bytes) and one piece a digit."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=not whole,
        split_digits=True,
        user_defined_symbols=list(whole),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        num_threads=1,  # the same model on every machine
        minloglevel=2,
    )
    return model.getvalue()


def _chosen_tasks(names: Sequence[str] | None) -> list[tuple[Task, int]]:
    known = [task.__name__ for task, _ in TASKS]
    unknown = [name for name in names or () if name not in known]
    if unknown or names == []:
        found = ", ".join(unknown) or "an empty list"
        raise ValueError(f"dataset.sample_tasks: found {found}, expected some of {', '.join(known)}, or null for all.")
    return [(task, weight) for task, weight in TASKS if names is None or task.__name__ in names]


def _is_test(exchange: Exchange, seed: int, test_ratio: float) -> bool:
    digest = hashlib.sha256(f"{seed} {exchange.subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < test_ratio * 2**64


def _record(exchange: Exchange, task: str, has_system: bool) -> Record:
    conversation: list[dict[str, Any]] = []
    if has_system:
        conversation.append({"from": "system", "value": SYSTEM_PROMPT, "weight": None})
    for index, text in enumerate(exchange.messages):
        is_answer = index % 2 == 1
        conversation.append({"from": "gpt" if is_answer else "human", "value": text, "weight": float(is_answer)})
    return {"conversations": conversation, "source": task}


def _texts(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        for message in record["conversations"]:
            yield message["value"]
        yield from (marker.strip() for marker in MARKERS.values())
