"""Whether all ranks of a run do the same: finds the ranks whose options, data or weights differ, and names them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from engine.runtime.devices import Runtime

# What may differ, since machines keep things in places of their own.
PLACES = ("_dir", "_path", "_paths", "_paths_test", "load_checkpoint", "resume_from")
MOST_NAMED = 5
TOLERANCE = 1e-3  # of a tensor's norm; rounding may drift by less, a step that differs moves weights by more
SAME = "All ranks need the same code, options and data (docs/scaling.md)."


def check_facts(facts: Mapping[str, Any], runtime: Runtime) -> None:
    """Raise a ValueError on all ranks if a fact is not the same on all of them; places of files may differ."""
    if runtime.world_size == 1:
        return
    own = {name: value for name, value in flattened(facts).items() if not name.endswith(PLACES)}
    found = [json.loads(text) for text in texts_of_ranks(json.dumps(own, default=str), runtime)]
    names = sorted({name for rank in found for name in rank})
    wrong = [told for name in names if (told := odd_ones(name, [str(rank.get(name, "nothing")) for rank in found]))]
    if wrong:
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise ValueError(f"The ranks differ in {'; '.join(wrong[:MOST_NAMED])}{more}. {SAME}")


def check_weights(module: nn.Module, runtime: Runtime, when: str) -> None:
    """The same for the trained parameters, of which each rank has a copy; their sums and norms are compared."""
    trained = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
    if runtime.world_size == 1 or not trained:
        return
    names = list(trained)
    # With a dtype, and not as copies: a table may be large, and its type a short one.
    sums = [weight.sum(dtype=torch.float32) for weight in trained.values()]
    norms = [torch.linalg.vector_norm(weight, dtype=torch.float32) for weight in trained.values()]
    own = torch.stack([torch.stack(sums), torch.stack(norms)], dim=-1)
    found = runtime.all_gather_rows(own.cpu()[None])  # (ranks, parameters, 2)
    for index in range(len(names)):
        odd = far_ranks(found[:, index, 0], TOLERANCE * found[:, index, 1].max())
        if odd:
            raise ValueError(
                f"The weights of {ranks(odd)} differ from those of the other ranks {when}, first in {names[index]}. Nothing "
                f"was saved with them: look at these machines, and resume from the last checkpoint. {SAME}"
            )


def far_ranks(sums: Tensor, tolerance: Tensor) -> list[int]:
    """Those that are far from what most ranks have; of two it is the second one."""
    is_near = (sums[:, None] - sums[None]).abs() <= tolerance  # not so where one is not a number
    centre = int(is_near.sum(1).argmax())
    return [rank for rank, near in enumerate(is_near[centre].tolist()) if not near]


def odd_ones(name: str, values: Sequence[str]) -> str | None:
    """Which ranks have another value than most; of two it is the second one. None: all have the same."""
    (usual, _), *others = Counter(values).most_common()
    told = [
        f"{name}={value} on {ranks([rank for rank, own in enumerate(values) if own == value])}" for value, _ in others
    ]
    return f"{', '.join(told)} instead of {usual}" if told else None


def ranks(numbers: Sequence[int]) -> str:
    named = ", ".join(map(str, islice(numbers, MOST_NAMED)))
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return f"rank{'s' * (len(numbers) > 1)} {named}{more}"


def flattened(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"arch": {"norm": x}}` as `{"arch.norm": x}`."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def texts_of_ranks(text: str, runtime: Runtime) -> list[str]:
    """The text of every rank, on every rank."""
    own = torch.tensor(list(text.encode()), dtype=torch.uint8)
    sizes = runtime.all_gather_rows(torch.tensor([len(own)])).tolist()
    padded = torch.zeros(1, max(sizes), dtype=torch.uint8)
    padded[0, : len(own)] = own
    rows = runtime.all_gather_rows(padded)
    return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]
