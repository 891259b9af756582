"""Questions of known depth: the facts that lead to each answer, and what may be trained."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.text.composition import RELATIONS, CompositionOptions, Question, Record, World, make_composition_records
from dataset.text.conversation import Turn
from dataset.text.slimorca import SlimOrcaConfig, corpus_digest, load_corpus, read_texts
from dataset.text.template import ConversationEncoder
from tests.text_runs import write_corpus

SMALL = CompositionOptions(people=12, relations=3, hops=3, longer=1, questions=150, held_out=20)
options_of_a_world = st.builds(
    CompositionOptions,
    form=st.sampled_from(["symbols", "sentences"]),
    people=st.integers(8, 40),
    relations=st.integers(2, 6),
    hops=st.integers(3, 5),
    longer=st.integers(0, 2),
    questions=st.integers(20, 120),
    held_out=st.integers(1, 30),
    turns=st.integers(1, 4),
)


def exchanges(record: Record) -> list[tuple[str, str, int]]:
    """Question, answer and hops of every turn."""
    texts = [message["value"] for message in record["conversations"]]
    assert [message["from"] for message in record["conversations"]] == ["human", "gpt"] * (len(texts) // 2)
    return list(zip(texts[::2], texts[1::2], record["hops"], strict=True))


def of_sets(records: dict[str, list[Record]]) -> dict[str, list[tuple[str, str, int]]]:
    return {name: [turn for record in found for turn in exchanges(record)] for name, found in records.items()}


def parsed(world: World, text: str) -> Question:
    """What a line of symbols or a sentence asks: both name the person, then the relations in their order."""
    person, *relations = (word for word in re.findall(r"\w+", text) if word in world.names or word in RELATIONS)
    return Question(world.names.index(person), tuple(RELATIONS.index(relation) for relation in relations))


def followed(world: World, question: Question) -> list[tuple[int, int]]:
    """The facts of a question, by hand."""
    person, facts = question.person, []
    for relation in question.path:
        facts.append((person, relation))
        person = world.maps[relation][person]
    return facts


@settings(max_examples=25, deadline=None)
@given(options_of_a_world, st.integers(0, 2**32))
def test_nothing_held_out_is_trained_and_every_answer_follows_from_the_facts(
    options: CompositionOptions, seed: int
) -> None:
    records = make_composition_records(options, seed)
    assert all(len(record["hops"]) == 1 for name in records if name != "train" for record in records[name])
    assert max(len(record["hops"]) for record in records["train"]) <= options.turns
    turns, world = of_sets(records), World(options, seed)
    questions = {name: [parsed(world, text) for text, _, _ in found] for name, found in turns.items()}
    for name, found in questions.items():
        if name != "train":
            assert not set(found) & set(questions["train"])
            assert len(set(found)) == len(found) <= options.held_out
    held_out = [question for name, found in questions.items() if name != "train" for question in found]
    assert len(set(held_out)) == len(held_out)
    for name, found in turns.items():
        for text, answer, hops in found:
            question = parsed(world, text)
            facts = followed(world, question)
            person, relation = facts[-1]
            assert answer == world.names[world.maps[relation][person]]
            assert hops == len(facts)
            rare = [fact in world.unchained for fact in facts]
            if name.startswith("ood"):
                assert not rare[0] and all(rare[1:]) and len(facts) == int(name[3:])
            elif len(facts) > 1:
                assert not any(rare)
                assert name == "train" or name == "validation" or len(facts) == int(name[2:])
            if name in ("train", "validation"):
                assert len(facts) <= options.hops


def test_a_question_is_trained_in_every_wording_and_held_out_in_one_of_them() -> None:
    options = CompositionOptions(**vars(SMALL) | {"form": "sentences"})
    asked, world = of_sets(make_composition_records(options, 0)), World(options, 0)
    trained = Counter(parsed(world, text) for text, _, _ in asked["train"])
    texts = Counter(text for text, _, _ in asked["train"])
    for question, count in trained.items():
        chain = "'s ".join([world.names[question.person], *(RELATIONS[relation] for relation in question.path)])
        wordings = [f"Who is {chain}?", f"Who is {chain}", f"Tell me who {chain} is."]
        assert [texts.pop(wording) for wording in wordings] == [count / 3] * 3
    assert not texts
    first_third = asked["train"][: len(asked["train"]) // 3]
    assert Counter(parsed(world, text) for text, _, _ in first_third) == {q: n / 3 for q, n in trained.items()}
    for part in (first_third, asked["id3"]):
        ends = {text[-1] for text, _, _ in part}
        assert {"?", "."} < ends and len(ends) > 2


def test_every_fact_is_trained_alone_and_a_quarter_of_the_records_are_facts() -> None:
    records = make_composition_records(CompositionOptions(), 0)
    assert {record["source"] for record in records["id4"]} == {"id4"}
    trained = of_sets(records)["train"]
    facts = [text for text, _, hops in trained if hops == 1]
    assert len(set(facts)) == 32 * 4
    assert len(facts) / len(trained) == pytest.approx(0.25, abs=0.02)
    assert len(trained) - len(facts) == 2000
    assert {len(record["hops"]) for record in records["train"]} == {1, 2, 3}
    hops = [hops for _, _, hops in trained[:400]]  # in no order, so that a part of them is like the whole
    assert {1, 2, 3, 4} == set(hops) and hops.count(1) < 200


def test_seeds_make_other_worlds_and_the_same_seed_the_same() -> None:
    first, again, other = (make_composition_records(SMALL, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_more_questions_than_there_are_is_said() -> None:
    with pytest.raises(ValueError, match="composition.questions=100000"):
        make_composition_records(CompositionOptions(people=4, relations=1, questions=100_000), 0)


def config(folder: Path, **options: object) -> SlimOrcaConfig:
    defaults = {"source": "composition", "composition": SMALL, "template": "plain", "subset_size": None, "seq_len": 32}
    return SlimOrcaConfig(folder, **defaults | options)  # type: ignore[arg-type]


def test_a_plain_document_is_one_token_a_word_and_an_end(tmp_path: Path) -> None:
    corpus = load_corpus(config(tmp_path), progress=False)
    for store in (corpus.train, corpus.test):
        for index in range(len(store)):
            ids, is_trained = store.document(index)
            ends = (ids == corpus.tokenizer.eos_id).tolist()
            words = " ".join(corpus.tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ends) + 1))
            assert len(ids) == len(words.split()) + sum(ends) and ends[-1]
            assert is_trained.tolist() == [one or other for one, other in zip(ends, [*ends[1:], False], strict=True)]


def test_the_possessive_of_a_sentence_is_one_token(tmp_path: Path) -> None:
    sentences = CompositionOptions(**vars(SMALL) | {"form": "sentences"})
    corpus = load_corpus(config(tmp_path, composition=sentences), progress=False)
    for index in range(len(corpus.test)):
        ids, is_trained = corpus.test.document(index)
        text = corpus.tokenizer.decode(ids[~is_trained].tolist())
        assert (~is_trained).sum() == len(re.findall(r"'s|\w+|[?.]", text))
        assert is_trained.sum() == 2  # the name and the end
    assert corpus.tokenizer.vocab_size < 120, "rows that are never met slow a tied embedding down"
    assert b"'s" not in load_corpus(config(tmp_path), progress=False).tokenizer.files()[0].read_bytes()


def test_the_prompt_of_a_plain_question_is_how_its_document_begins(tmp_path: Path) -> None:
    corpus = load_corpus(config(tmp_path), progress=False)
    encoder = ConversationEncoder(corpus.tokenizer, template="plain")
    ids, is_trained = corpus.test.document(0)
    text = corpus.tokenizer.decode(ids[~is_trained].tolist())
    assert encoder.encode_prompt([Turn("user", text)]) == ids[~is_trained].tolist()


def test_each_held_out_set_has_its_own_documents(tmp_path: Path) -> None:
    corpus = load_corpus(config(tmp_path), progress=False)
    assert next(iter(corpus.test_sets)) == "validation"
    assert sum(map(len, corpus.test_sets.values())) == len(corpus.test)
    for name, documents in corpus.test_sets.items():
        lengths = {len(corpus.test.document(index)[0]) for index in documents}
        if name != "validation":
            assert lengths == {int(name[-1]) + 3}  # the person, its hops, the answer and the end
        part = corpus.test.part(documents)
        assert len(part) == len(documents)
        np.testing.assert_array_equal(part.document(0)[0], corpus.test.document(documents[0])[0])
    assert "validation" in corpus.report.splits and f"{len(corpus.test)} test" in corpus.report.summary()


def test_sizes_cut_every_set(tmp_path: Path) -> None:
    corpus = load_corpus(config(tmp_path, subset_size=50, test_size=7), progress=False)
    assert len(corpus.train) == 50
    assert {len(documents) for documents in corpus.test_sets.values()} <= set(range(1, 8))


def test_the_digest_tells_worlds_apart_and_texts_are_read_by_split(tmp_path: Path) -> None:
    small, large = config(tmp_path), config(tmp_path, composition=CompositionOptions())
    assert corpus_digest(small) != corpus_digest(large) != corpus_digest(config(tmp_path, source="sample"))
    corpus = load_corpus(small, progress=False)
    assert len(list(read_texts(small, splits=["test"]))) == len(corpus.test)
    assert len(list(read_texts(small, splits=["train"]))) == len(corpus.train)


def test_questions_are_added_to_another_corpus(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "data")
    tokenizer = load_corpus(config(tmp_path), progress=False).tokenizer.files()[0]
    local = config(
        folder, source="local", template="markers", seq_len=256, test_ratio=0.3, composition=CompositionOptions()
    )
    alone = load_corpus(local, tokenizer, progress=False)
    mixed = load_corpus(
        config(
            folder, source="local", template="markers", seq_len=256, test_ratio=0.3,
            composition=CompositionOptions(**vars(SMALL) | {"mix": True}),
        ),
        tokenizer,
        progress=False,
    )  # fmt: skip
    made = make_composition_records(SMALL, 0)
    assert len(mixed.train) == len(alone.train) + len(made["train"])
    assert list(mixed.test_sets) == ["test", *(name for name in made if name != "train")]
    assert len(mixed.test_sets["test"]) == len(alone.test)
    sample = config(
        tmp_path, source="sample", sample_size=300, composition=CompositionOptions(**vars(SMALL) | {"mix": True})
    )
    added = load_corpus(sample, progress=False)
    assert list(added.test_sets) == ["test", *(name for name in made if name != "train")]
    assert len(added.train) + len(added.test_sets["test"]) == 300 + len(made["train"])
    json.dumps(made)  # records are plain JSON, like those of a file
