"""How far two results are apart."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map


def on_host(tree: Any) -> Any:
    """The same with copies of its tensors in host memory."""
    return tree_map(lambda value: value.detach().cpu().clone() if isinstance(value, Tensor) else value, tree)


def worst_difference(found: Any, expected: Any) -> tuple[float, str]:
    """The largest difference of two numbers at the same place, of those above 1 as a share, and that place; infinite
    where they cannot be compared."""
    one, other = tree_flatten_with_path(found), tree_flatten_with_path(expected)
    if one[1] != other[1]:
        return math.inf, "other keys or lengths"
    differences = [
        (difference(a, b), "".join(map(str, path))) for (path, a), (_, b) in zip(one[0], other[0], strict=True)
    ]
    return max(differences, default=(0.0, ""))


def difference(found: Any, expected: Any) -> float:
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        if found.dtype != expected.dtype or found.shape != expected.shape:
            return math.inf
        if not torch.equal(found.isfinite(), expected.isfinite()):
            return math.inf
        apart = (found.double() - expected.double()).abs() / expected.double().abs().clamp_min(1)
        apart = apart[found.isfinite()]
        return float(apart.max()) if apart.numel() else 0.0
    if isinstance(found, float) and isinstance(expected, float):
        is_same = found == expected or (math.isnan(found) and math.isnan(expected))
        return 0.0 if is_same else abs(found - expected) / max(1.0, abs(expected))
    return 0.0 if found == expected else math.inf
