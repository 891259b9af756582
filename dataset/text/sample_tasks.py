"""Small questions with one right answer each, drawn at random: what the built-in conversations are about.

Letters are written apart, so that a tokenizer sees each as one piece.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Chile": "Santiago", "Cuba": "Havana", "Denmark": "Copenhagen",
    "Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Greece": "Athens",
    "Hungary": "Budapest", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo",
    "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Spain": "Madrid", "Sweden": "Stockholm",
}  # fmt: skip
YOUNG = {
    "bear": "cub", "cat": "kitten", "cow": "calf", "deer": "fawn", "dog": "puppy", "duck": "duckling", "goat": "kid",
    "goose": "gosling", "hen": "chick", "horse": "foal", "kangaroo": "joey", "pig": "piglet", "sheep": "lamb",
    "swan": "cygnet",
}  # fmt: skip
OPPOSITES = {
    "big": "small", "cold": "hot", "dark": "light", "dry": "wet", "early": "late", "empty": "full", "fast": "slow",
    "hard": "soft", "heavy": "light", "high": "low", "near": "far", "old": "new", "open": "closed", "rich": "poor",
    "short": "long", "strong": "weak", "thick": "thin", "young": "old",
}  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """One or more questions with their answers, and what they are about: equal subjects never stand in both splits."""

    subject: str
    messages: tuple[str, ...]  # user, assistant, user, ...


Task = Callable[[Random], Exchange]


def addition(rng: Random) -> Exchange:
    a, b = rng.randrange(100), rng.randrange(30)
    question = rng.choice(("What is {} + {}?", "Add {} and {}.", "How much is {} plus {}?")).format(a, b)
    return Exchange(f"{min(a, b)}+{max(a, b)}", (question, str(a + b)))


def subtraction(rng: Random) -> Exchange:
    b, a = sorted((rng.randrange(100), rng.randrange(30)))
    question = rng.choice(("What is {} - {}?", "How much is {} minus {}?")).format(a, b)
    return Exchange(f"{a}-{b}", (question, str(a - b)))


def larger(rng: Random) -> Exchange:
    a, b = rng.sample(range(100), 2)
    question, answer = rng.choice(
        (("Which is larger, {} or {}?", max(a, b)), ("Which is smaller, {} or {}?", min(a, b)))
    )
    return Exchange(f"{min(a, b)}<{max(a, b)}", (question.format(a, b), str(answer)))


def parity(rng: Random) -> Exchange:
    a = rng.randrange(1000)
    return Exchange(f"parity {a}", (f"Is {a} even or odd?", "odd" if a % 2 else "even"))


def counting(rng: Random) -> Exchange:
    a = rng.randrange(1, 999)
    question, answer = rng.choice((("Which number comes after {}?", a + 1), ("Which number comes before {}?", a - 1)))
    return Exchange(f"count {a}", (question.format(a), str(answer)))


def calendar(rng: Random) -> Exchange:
    """Like a fact: each is taught in some wordings and tested in others."""
    names, unit = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    start, distance, sign = rng.randrange(len(names)), rng.randrange(1, 5), rng.choice((1, -1))
    apart = f"one {unit}" if distance == 1 else f"{distance} {unit}s"
    wording = rng.choice(("Which {} is {} {} {}?", "What {} comes {} {} {}?", "Name the {} {} {} {}."))
    question = wording.format(unit, apart, "after" if sign > 0 else "before", names[start])
    return Exchange(question, (question, names[(start + sign * distance) % len(names)]))


def _word(rng: Random, shortest: int, longest: int, letters: str = string.ascii_lowercase) -> list[str]:
    return [rng.choice(letters) for _ in range(rng.randint(shortest, longest))]


def spelling(rng: Random) -> Exchange:
    """Everything that is asked about the letters of a word."""
    word = _word(rng, 3, 5)
    spelled = " ".join(word)
    question, answer = rng.choice(
        (
            ("Write {} backwards.", " ".join(reversed(word))),
            ("Reverse the letters {}.", " ".join(reversed(word))),
            ("Sort the letters {}.", " ".join(sorted(word))),
            ("Put {} in order.", " ".join(sorted(word))),
            ("Repeat {}.", spelled),
            ("What is the first letter of {}?", word[0]),
            ("What is the last letter of {}?", word[-1]),
            ("How many letters has {}?", str(len(word))),
        )
    )
    return Exchange(f"spell {spelled}", (question.format(spelled), answer))


def occurrences(rng: Random) -> Exchange:
    word = _word(rng, 3, 5, "abc")
    letter = rng.choice("abc")
    question = f"How many {letter} are in {' '.join(word)}?"
    return Exchange(question, (question, str(word.count(letter))))


def fact(rng: Random) -> Exchange:
    """Each fact is taught in some wordings and tested in others."""
    table, wordings = rng.choice(
        (
            (CAPITALS, ("What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?")),
            (YOUNG, ("What is a young {} called?", "Name the young of a {}.", "A young {} is a what?")),
            (OPPOSITES, ("What is the opposite of {}?", "Name the opposite of {}.", "Which word means not {}?")),
        )
    )
    name = rng.choice(sorted(table))
    question = rng.choice(wordings).format(name)
    return Exchange(question, (question, table[name]))


def memory(rng: Random) -> Exchange:
    """Two questions; the second can only be answered from the first."""
    number, spelled = rng.randrange(1000), " ".join(_word(rng, 3, 4))
    thing, question = rng.choice(((str(number), "Which number was it?"), (spelled, "Which letters were they?")))
    return Exchange(f"remember {thing}", (f"Remember {thing}.", "Yes.", question, thing))


TASKS: tuple[tuple[Task, int], ...] = (  # with how often each is drawn
    (addition, 4),
    (subtraction, 2),
    (larger, 2),
    (parity, 1),
    (counting, 2),
    (calendar, 2),
    (spelling, 6),
    (occurrences, 1),
    (fact, 2),
    (memory, 1),
)
