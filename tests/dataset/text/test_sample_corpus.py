import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset.text.conversation import parse_record
from dataset.text.sample_corpus import make_sample_records, sample_tokenizer
from dataset.text.sample_tasks import CAPITALS, DAYS, MONTHS, OPPOSITES, YOUNG
from dataset.text.slimorca import SlimOrcaConfig, load_corpus
from dataset.tokenization.lookup import load_tokenizer
from dataset.tokenization.protocol import Tokenizer

Records = dict[str, list[dict[str, Any]]]
SIZE = 4000


@pytest.fixture(scope="module")
def records() -> Records:
    return make_sample_records(SIZE, seed=0, test_ratio=0.1)


@pytest.fixture(scope="module")
def own_tokenizer(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(sample_tokenizer(records["train"], tmp_path_factory.mktemp("sample")))


def messages(record: dict[str, Any], role: str) -> list[str]:
    return [message["value"] for message in record["conversations"] if message["from"] == role]


def of_task(records: list[dict[str, Any]], task: str) -> list[tuple[str, str]]:
    """(first question, last answer) of each."""
    found = [(messages(r, "human")[0], messages(r, "gpt")[-1]) for r in records if r["source"] == task]
    assert found, task
    return found


def letters(question: str) -> list[str]:
    """The longest run of letters that stand apart."""
    return max(re.findall(r"\b[a-z](?: [a-z]\b)*", question), key=len).split()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_test_question_is_ever_asked_in_training(seed: int) -> None:
    records = make_sample_records(SIZE, seed, test_ratio=0.1)
    asked = {split: {tuple(messages(record, "human")) for record in records[split]} for split in records}
    assert not asked["train"] & asked["test"]
    assert len(asked["test"]) == len(records["test"])  # nor twice in the test


def test_the_kinds_of_questions_can_be_chosen() -> None:
    records = make_sample_records(SIZE, 0, 0.1, ["addition", "parity"])
    assert {record["source"] for split in records for record in records[split]} == {"addition", "parity"}
    with pytest.raises(ValueError, match="sums.*addition"):
        make_sample_records(SIZE, 0, 0.1, ["parity", "sums"])
    with pytest.raises(ValueError, match="sample_tasks"):
        make_sample_records(SIZE, 0, 0.1, [])


def test_a_sum_is_new_in_every_wording_and_order(records: Records) -> None:
    def sums(split: str) -> set[frozenset[str]]:
        return {frozenset(re.findall(r"\d+", question)) for question, _ in of_task(records[split], "addition")}

    assert not sums("train") & sums("test")


def test_a_tested_word_is_never_seen_in_training(records: Records) -> None:
    def words(split: str) -> set[str]:
        return {" ".join(letters(question)) for question, _ in of_task(records[split], "spelling")}

    assert not words("train") & words("test")


def test_a_tested_fact_is_taught_in_another_wording() -> None:
    records = make_sample_records(20_000, seed=0, test_ratio=0.05)
    for task in ("fact", "calendar"):
        taught = {answer for _, answer in of_task(records["train"], task)}
        assert {answer for _, answer in of_task(records["test"], task)} <= taught
    young = {name for question, _ in of_task(records["train"], "fact") for name in YOUNG if name in question.split()}
    assert young == set(YOUNG)


def numbers(question: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", question)]


def spelled(question: str) -> str:
    word = letters(question)
    if "backwards" in question or "Reverse" in question:
        return " ".join(word[::-1])
    if "Sort" in question or "order" in question:
        return " ".join(sorted(word))
    if "letter of" in question:
        return word[0] if "first" in question else word[-1]
    return str(len(word)) if "How many" in question else " ".join(word)


def after(question: str) -> str:
    names = DAYS if "day is" in question or " day " in question else MONTHS
    start = next(index for index, name in enumerate(names) if name in question)
    distance = 1 if "one" in question else numbers(question)[0]
    return names[(start + distance * (1 if "after" in question else -1)) % len(names)]


def known(question: str) -> str:
    tables = {"capital": CAPITALS, "opposite": OPPOSITES, "not": OPPOSITES, "young": YOUNG}
    table = next(table for word, table in tables.items() if word in question)
    return next(table[name] for name in table if re.search(rf"\b{name}\b", question))


RIGHT: dict[str, Callable[[str], Any]] = {
    "addition": lambda question: sum(numbers(question)),
    "subtraction": lambda question: numbers(question)[0] - numbers(question)[1],
    "larger": lambda question: (max if "larger" in question else min)(numbers(question)),
    "parity": lambda question: "odd" if numbers(question)[0] % 2 else "even",
    "counting": lambda question: numbers(question)[0] + (1 if "after" in question else -1),
    "calendar": after,
    "spelling": spelled,
    "occurrences": lambda question: question.split(" in ")[1].count(question.split()[2]),
    "fact": known,
    "memory": lambda question: question.removeprefix("Remember ").removesuffix("."),
}


@pytest.mark.parametrize("task", RIGHT)
def test_answers_are_right(records: Records, task: str) -> None:
    for question, answer in of_task(records["train"] + records["test"], task):
        assert answer == str(RIGHT[task](question)), question


def test_every_task_is_checked_and_tested(records: Records) -> None:
    for split in records.values():
        assert {record["source"] for record in split} == set(RIGHT)


def test_records_have_slimorcas_form(records: Records) -> None:
    assert SIZE * 0.9 < len(records["train"]) + len(records["test"]) <= SIZE
    assert 0.07 < len(records["test"]) / SIZE < 0.11
    systems = 0
    for record in records["train"]:
        turns = parse_record(record)
        systems += turns[0].role == "system"
        assert [turn.is_trained for turn in turns] == [turn.role == "assistant" for turn in turns]
    assert 0 < systems < 0.1 * SIZE


def test_records_follow_from_the_seed(records: Records) -> None:
    assert make_sample_records(SIZE, seed=0, test_ratio=0.1) == records
    assert make_sample_records(SIZE, seed=1, test_ratio=0.1) != records
    assert make_sample_records(100, seed=0, test_ratio=0.0)["test"] == []


def test_digits_and_letters_are_one_piece_each(own_tokenizer: Tokenizer) -> None:
    assert (own_tokenizer.bos_id, own_tokenizer.eos_id) == (1, 2)
    pieces = [own_tokenizer.piece_bytes(token_id) for token_id in own_tokenizer.encode("Add 47 and 135.")]
    assert pieces == [b" Add", b" ", b"4", b"7", b" and", b" ", b"1", b"3", b"5", b"."]
    word = own_tokenizer.encode("q u q z")
    assert len(word) == 4 and word[0] == word[2]
    assert own_tokenizer.encode("Write z q.")[1:3] == [word[3], word[0]]


def test_all_words_of_the_questions_are_one_piece(tmp_path: Path) -> None:
    """With as many records as are the default, so that no word is rare."""
    records = make_sample_records(SlimOrcaConfig().sample_size, seed=0, test_ratio=0.05)
    texts = [message["value"] for split in records.values() for r in split for message in r["conversations"]]
    words = {word.strip(".,?") for text in texts for word in text.split()}
    tokenizer = load_tokenizer(sample_tokenizer(records["train"], tmp_path))
    assert [word for word in words if word.isalpha() and len(tokenizer.encode(word)) > 1] == []


def test_any_text_survives_the_round_trip(own_tokenizer: Tokenizer) -> None:
    for text in ("Write c a t backwards.", "Grüße, 世界!\n\ttabs  and   spaces "):
        assert own_tokenizer.decode(own_tokenizer.encode(text)) == text


def test_the_tokenizer_is_made_once_and_always_the_same(records: Records, tmp_path: Path) -> None:
    first = sample_tokenizer(records["train"], tmp_path / "first")
    content, made = first.read_bytes(), first.stat().st_mtime_ns
    assert sample_tokenizer(records["train"], tmp_path / "first") == first
    assert first.stat().st_mtime_ns == made
    second = sample_tokenizer(records["train"], tmp_path / "second")
    assert second.read_bytes() == content
    assert second.name == "tokenizer.model" and list(second.parent.iterdir()) == [second]
    assert sample_tokenizer(records["train"][:-1], tmp_path / "first") != first


@pytest.mark.parametrize("size", [1, 300])
def test_it_loads_without_any_file_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("LLAMA_TOKENIZER", "missing.model")  # of no concern to a corpus that brings its own
    config = SlimOrcaConfig(tmp_path, source="sample", sample_size=size, subset_size=100, test_ratio=0.1)
    corpus = load_corpus(config, progress=False)
    assert len(corpus.train) == min(size, 100) and len(corpus.test) < 40
    assert not corpus.report.total.dropped


def test_a_tokenizer_that_is_given_is_used(tmp_path: Path, tokenizer_path: Path) -> None:
    config = SlimOrcaConfig(tmp_path, source="sample", sample_size=50)
    assert load_corpus(config, tokenizer_path, progress=False).tokenizer.files() == [tokenizer_path]
    assert not list(tmp_path.iterdir())
