"""Write short synthetic conversations whose second question needs the first, to see a chat model learn in minutes.

python examples/make_conversations.py --count 6000 --output data/pets.json --held-out data/pets_held_out.json
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = [
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jana", "Kai", "Lea",
    "Max", "Nora", "Otto", "Pia", "Rosa", "Sam", "Tara", "Udo", "Vera", "Will", "Yara", "Zoe",
]  # fmt: skip
ANIMALS = ["cat", "dog", "horse", "goat", "duck", "mouse", "rabbit", "parrot", "turtle", "hamster"]
COLOURS = ["red", "blue", "green", "black", "white", "brown", "grey", "yellow"]
THINGS = ["car", "hat", "bike", "bag", "coat", "boat", "lamp", "chair"]
Exchange = list[tuple[str, str]]


def pets(draw: random.Random) -> Exchange:
    name, animal, number = draw.choice(NAMES), draw.choice(ANIMALS), draw.randint(2, 9)
    questions = [
        (f"How many {animal}s do I have?", f"You have {number} {animal}s."),
        ("What is my name?", f"Your name is {name}."),
        ("Which animals do I have?", f"You have {animal}s."),
    ]
    return [(f"I am {name} and I have {number} {animal}s.", f"Hello {name}!"), draw.choice(questions)]


def things(draw: random.Random) -> Exchange:
    name, colour, thing = draw.choice(NAMES), draw.choice(COLOURS), draw.choice(THINGS)
    questions = [
        (f"What colour is the {thing}?", f"It is {colour}."),
        ("Whose is it?", f"It belongs to {name}."),
    ]
    return [(f"{name} has a {colour} {thing}.", f"A {colour} {thing}, I see."), draw.choice(questions)]


def sums(draw: random.Random) -> Exchange:
    first, second = draw.randint(1, 20), draw.randint(1, 20)
    more = draw.randint(1, 9)
    return [
        (f"What is {first} plus {second}?", f"{first + second}"),
        (f"And {more} more?", f"{first + second + more}"),
    ]


KINDS: tuple[Callable[[random.Random], Exchange], ...] = (pets, things, sums)


def conversations(count: int, seed: int) -> list[dict[str, Any]]:
    """Different conversations, in ShareGPT's form; equal seeds give equal ones."""
    draw = random.Random(seed)
    found: dict[str, Exchange] = {}
    for _ in range(20 * count):
        exchange = draw.choice(KINDS)(draw)
        found.setdefault(json.dumps(exchange), exchange)
        if len(found) == count:
            break
    else:
        raise ValueError(f"There are only about {len(found)} different conversations; ask for fewer than {count}.")
    return [
        {
            "id": f"made-up-{number}",
            "conversations": [
                {"from": role, "value": text}
                for question, answer in exchange
                for role, text in (("user", question), ("assistant", answer))
            ],
        }
        for number, exchange in enumerate(found.values())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="file of the conversations to train on")
    parser.add_argument(
        "--held-out", type=Path, help="file for one conversation in ten, which are then not in the other"
    )
    args = parser.parse_args()
    try:
        made = conversations(args.count, args.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    kept = len(made) - (len(made) // 10 if args.held_out else 0)
    for path, part in ((args.output, made[:kept]), (args.held_out, made[kept:])):
        if path is not None:
            content = json.dumps(part, indent=1, ensure_ascii=False) + "\n"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
            except OSError as error:
                sys.exit(
                    f"error: {path} is not whole: {error.strerror}. Make room or choose another place, and run again."
                )
            print(f"{len(part)} conversations in {path}")


if __name__ == "__main__":
    main()
