"""Counts the bytes of tensors that exist at once."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it `most` is the most that tensors made within it held at one time, backward's own among them."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.outside: dict[int, StorageWeakRef] = {}
        self.most = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.outside |= {key_of(t): StorageWeakRef(t.untyped_storage()) for t in given if key_of(t) not in self.live}
        self.names.append(func.overloadpacket.__name__)
        made = func(*args, **(kwargs or {}))
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.outside = {key: ref for key, ref in self.outside.items() if not ref.expired()}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (key := key_of(leaf)) not in self.outside:
                storage = leaf.untyped_storage()
                self.live[key] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return made


def key_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
