"""Questions of known depth: facts about made-up people, and questions that chain k of them.

A relation maps every person to another one, one to one. A question of k hops follows k relations from a person. All
facts are trained alone; some of them never occur within a trained chain, so that composing them can be tested.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any, Literal

from dataset.tokenization.protocol import SPACE

RELATIONS = ("mother", "teacher", "neighbour", "doctor", "friend", "boss", "cousin", "guest")
SYLLABLES = ("ba", "de", "fi", "ga", "ho", "ju", "ka", "le", "mi", "no", "pa", "ru", "sa", "te", "vo", "zu")
FACT_SHARE = 0.25  # of the training records, those that ask for one fact
UNCHAINED_SHARE = 8  # one fact in so many never occurs in a trained chain
HELD_OUT_SHARE = 5  # and of the questions of a length, at most one in so many is held out for each set
MISSES = 2000  # in a row, after which there are taken to be no more questions of a kind

# Where a chain of people stands in a question, and what joins it. A sentence without its last mark is among them because
# the answer then follows the last relation directly: without one, the others are not learnt either (docs/log.md).
WORDINGS = {
    "symbols": ("{}",),
    "sentences": ("Who is {}?", "Who is {}", "Tell me who {} is."),
}
BETWEEN = {"symbols": " ", "sentences": "'s "}

Fact = tuple[int, int]  # person, relation
Record = dict[str, Any]


@dataclass(frozen=True)
class CompositionOptions:
    """How large the world is, and how many questions are asked about it."""

    form: Literal["symbols", "sentences"] = "symbols"
    people: int = 32
    relations: int = 4
    hops: int = 4  # of the longest trained questions
    longer: int = 2  # how many hops more are tested
    questions: int = 2000  # trained ones of two hops or more
    held_out: int = 200  # of each held-out set, where there are so many
    turns: int = 3  # questions of the longest trained conversations
    mix: bool = False  # added to the corpus of another source


@dataclass(frozen=True)
class Question:
    """The first person, and the relations that are followed from there."""

    person: int
    path: tuple[int, ...]

    @property
    def hops(self) -> int:
        return len(self.path)


Asked = tuple[Question, str]  # and its wording


class World:
    """The facts, and which of them are never chained in training."""

    def __init__(self, options: CompositionOptions, seed: int) -> None:
        rng = Random(f"world {seed}")
        self.people, self.relations = options.people, options.relations
        self.maps = [rng.sample(range(self.people), self.people) for _ in range(self.relations)]
        facts = list(product(range(self.people), range(self.relations)))
        self.unchained = frozenset(rng.sample(facts, len(facts) // UNCHAINED_SHARE))
        names = ["".join(pair).capitalize() for pair in product(SYLLABLES, SYLLABLES) if pair[0] != pair[1]]
        self.names = rng.sample(names, self.people)

    def facts_of(self, question: Question) -> list[Fact]:
        """The facts that lead to the answer, in order."""
        facts, person = [], question.person
        for relation in question.path:
            facts.append((person, relation))
            person = self.maps[relation][person]
        return facts

    def answer(self, question: Question) -> int:
        person, relation = self.facts_of(question)[-1]
        return self.maps[relation][person]

    def is_trainable(self, question: Question) -> bool:
        """Whether all its facts may occur in trained chains."""
        return self.unchained.isdisjoint(self.facts_of(question))

    def needs_unchained(self, question: Question) -> bool:
        """Whether its first fact occurs in trained chains and all others were only ever asked alone."""
        first, *others = self.facts_of(question)
        return first not in self.unchained and self.unchained.issuperset(others)

    def draw(self, rng: Random, hops: int) -> Question:
        path = tuple(rng.randrange(self.relations) for _ in range(hops))
        return Question(rng.randrange(self.people), path)


def make_composition_records(options: CompositionOptions, seed: int) -> dict[str, list[Record]]:
    """Conversations by set: `train`, then the held-out ones, `validation` first, which ask one question each.

    Trained ones ask one to `turns`: so a model sees, and learns to pass over, more tokens than a question has, without
    which questions that are longer than the trained ones fail.

    `id4` holds questions of 4 hops over facts that occur in trained chains; `ood2` those that need a fact that was only
    ever asked alone. `validation` is like `id`, of all trained lengths: what settings are chosen by.
    """
    world, rng = World(options, seed), Random(f"questions {seed}")
    asked = {name: _worded(found, name, options) for name, found in _questions(world, options, rng).items()}
    talks = {name: [[question] for question in found] for name, found in asked.items()} | {"train": []}
    while asked["train"]:
        turns = rng.randint(1, options.turns)
        talks["train"].append(asked["train"][:turns])
        del asked["train"][:turns]
    return {name: [_record(world, talk, name, options) for talk in talks[name]] for name in asked}


def whole_pieces(records: Sequence[Record], form: str) -> list[str]:
    """What is one token of the tokenizer of these records, wherever it stands.

    Of sentences it is every word and 's, so that a hop is two tokens and hardly any other piece is needed.
    """
    if form == "symbols":
        return []
    texts = [message["value"] for record in records for message in record["conversations"]]
    words = {word for text in texts for word in re.findall(r"\w+", text.replace("'s", " "))}
    return ["'s", *sorted(SPACE + word for word in words)]


def _questions(world: World, options: CompositionOptions, rng: Random) -> dict[str, list[Question]]:
    """Distinct questions of every held-out set, none of them trained; single facts are trained several times."""
    trained_hops, taken = range(2, options.hops + 1), set[Question]()

    def distinct(count: int, hops: Sequence[int], accepts: Callable[[Question], bool]) -> list[Question]:
        found: list[Question] = []
        misses = 0
        while len(found) < count and misses < MISSES:
            question = world.draw(rng, rng.choice(hops))
            if question in taken or not accepts(question):
                misses += 1
                continue
            found.append(question)
            taken.add(question)
            misses = 0
        return found

    def size(hops: int) -> int:
        return min(options.held_out, world.people * world.relations**hops // HELD_OUT_SHARE)

    sets: dict[str, list[Question]] = {}
    if trained_hops:
        sets["validation"] = distinct(size(2), trained_hops, world.is_trainable)
    for hops in range(2, options.hops + options.longer + 1):
        sets[f"id{hops}"] = distinct(size(hops), [hops], world.is_trainable)
    for hops in (2, 3):
        sets[f"ood{hops}"] = distinct(size(hops), [hops], world.needs_unchained)
    composed = distinct(options.questions, trained_hops, world.is_trainable) if trained_hops else []
    if trained_hops and len(composed) < options.questions:
        raise ValueError(
            f"dataset.composition.questions={options.questions}: found {len(composed)} different ones of 2 to "
            f"{options.hops} hops about {options.people} people. Ask for fewer, or raise hops, people or relations."
        )
    facts = [Question(person, (relation,)) for person, relation in product(range(world.people), range(world.relations))]
    times = max(1, round(len(composed) * FACT_SHARE / (1 - FACT_SHARE) / len(facts)))
    trained = facts * times + composed
    rng.shuffle(trained)
    return {"train": trained} | {name: found for name, found in sets.items() if found}


def _worded(found: Sequence[Question], name: str, options: CompositionOptions) -> list[Asked]:
    """Trained questions in every wording, each once before any a second time; held-out ones in one of them."""
    wordings = WORDINGS[options.form]
    shifts = range(len(wordings) if name == "train" else 1)
    return [(asked, wordings[(shift + i) % len(wordings)]) for shift in shifts for i, asked in enumerate(found)]


def _record(world: World, talk: Sequence[Asked], name: str, options: CompositionOptions) -> Record:
    conversation: list[dict[str, Any]] = []
    for question, wording in talk:
        words = [world.names[question.person], *(RELATIONS[relation] for relation in question.path)]
        text = wording.format(BETWEEN[options.form].join(words))
        conversation.append({"from": "human", "value": text, "weight": None})
        conversation.append({"from": "gpt", "value": world.names[world.answer(question)], "weight": 1.0})
    return {"conversations": conversation, "source": name, "hops": [question.hops for question, _ in talk]}
