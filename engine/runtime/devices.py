"""Where a run happens: its device, its ranks, its seed, whether it compiles, and the collectives over the ranks."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

COLLECTIVE_MINUTES = 30.0  # one rank may evaluate or write predictions for long while the others wait
Data = TypeVar("Data")
BUCKET_BYTES = 64 * 2**20  # bounds the extra memory of what works on many tensors at once


@dataclass(frozen=True)
class Runtime:
    device: torch.device
    rank: int
    world_size: int
    use_compile: bool

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def to_device(self, data: Data) -> Data:
        return to_device(data, self.device)

    def all_reduce_sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the ranks; all ranks pass the same shapes in the same order."""
        if self.world_size > 1:
            _apply_in_buckets(tensors, lambda flat: with_peers(dist.all_reduce, flat, op=dist.ReduceOp.SUM))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by that of rank 0."""
        if self.world_size > 1:
            _apply_in_buckets(tensors, lambda flat: with_peers(dist.broadcast, flat, src=0))

    def all_gather_rows(self, tensor: Tensor) -> Tensor:
        """Concatenate the equal-shaped tensors of all ranks along dimension 0, in rank order."""
        if self.world_size == 1:
            return tensor
        local = tensor.detach().contiguous()
        parts = [torch.empty_like(local) for _ in range(self.world_size)]
        with_peers(dist.all_gather, parts, local)
        return torch.cat(parts)

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank; every rank gets the same answer."""
        return bool(self.largest(int(flag)))

    def largest(self, vote: int) -> int:
        """The largest number that any rank gives; every rank gets the same answer."""
        if self.world_size == 1:
            return vote
        votes = torch.tensor([vote], dtype=torch.int32)  # on the host, where nobody waits for the device
        with_peers(dist.all_reduce, votes, op=dist.ReduceOp.MAX)
        return int(votes.item())

    def barrier(self) -> None:
        if self.world_size > 1:
            with_peers(dist.barrier, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def free_unused_memory(self) -> None:
        """Give back what the allocator keeps of tensors that are gone."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait until the device has done everything it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def close(self) -> None:
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def to_device(data: Data, device: torch.device) -> Data:
    """A tensor, or those that dictionaries, lists and tuples hold, on the device; on CUDA nobody waits for the copies."""

    def sent(tensor: Tensor) -> Tensor:
        # Only CUDA orders a non-blocking copy before the work that follows; on MPS the source may be freed too early.
        if device.type != "cuda" or tensor.device.type != "cpu":
            return tensor.to(device)
        return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)

    return map_tensors(sent, data)


def map_tensors(function: Callable[[Tensor], Tensor], data: Data) -> Data:
    """The same dictionaries, lists and tuples with what `function` makes of each tensor; all else stays."""
    found: Any = data
    if isinstance(data, Tensor):
        found = function(data)
    elif isinstance(data, dict):
        found = {key: map_tensors(function, value) for key, value in data.items()}
    elif isinstance(data, (list, tuple)):
        values = [map_tensors(function, value) for value in data]
        found = type(data)(*values) if hasattr(data, "_fields") else type(data)(values)
    return found


def start_runtime(
    device: str = "auto", compile: str | bool = "auto", seed: int = 0, collective_minutes: float = COLLECTIVE_MINUTES
) -> Runtime:
    """Choose the device, join the process group when torchrun started us, seed torch, and decide about compiling."""
    rank, world_size, local_rank = ranks_from_environment()
    chosen = choose_device(device, world_size, local_rank)
    use_compile = _choose_compile(compile, chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # Products of float32 in TensorFloat32, which keeps 10 bits of a factor and is several times faster.
        torch.set_float32_matmul_precision("high")
    if world_size > 1 and not dist.is_initialized():
        limit = timedelta(minutes=collective_minutes)
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            store=_store_of_restart(limit),
            rank=rank,
            world_size=world_size,
            timeout=limit,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    if chosen.type == "cpu":
        keep_freed_memory()
        # oneDNN keeps the code of so many products, of each shape another, a megabyte each; by itself of 1024.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    if not use_compile:
        leave_compiler_out()
    torch.manual_seed(seed)
    return Runtime(device=chosen, rank=rank, world_size=world_size, use_compile=use_compile)


def _store_of_restart(limit: timedelta) -> dist.Store | None:
    """The part of torchrun's store where the ranks of this restart meet; None if torch opens a store itself.

    torchrun keeps one store for all its attempts, and the addresses of killed ranks stay in it.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store, _, _ = next(dist.rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    return dist.PrefixStore(f"attempt_{attempt}", store)


def leave_compiler_out() -> None:
    """Spare a program that compiles nothing the two seconds in which torch's compiler is imported.

    An optimizer imports it to be told how these functions are kept from being traced; here they are called as they are.
    """
    optimizer = torch.optim.Optimizer
    for method in (optimizer.add_param_group, optimizer.zero_grad, optimizer.state_dict, optimizer.load_state_dict):
        if inner := getattr(method, "__wrapped__", None):
            vars(inner).setdefault("__dynamo_disable", inner)


def keep_freed_memory(largest: int = 2**25) -> None:
    """Tell glibc to keep freed blocks of up to so many bytes for the next step.

    By default it returns them to the system, which hands them out again page by page, zeroed: element-wise work on
    large tensors then takes several times as long. Where shapes vary from step to step, as those of text do, larger
    blocks leave holes that fit no later one, and a run would take more memory with every step. Other C libraries have
    no such switch and need none.
    """
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return
    largest_int, trim_threshold, mmap_threshold = 2**31 - 1, -1, -3
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, largest)
    libc.mallopt(trim_threshold, largest_int)


def ranks_from_environment() -> tuple[int, int, int]:
    """This rank, how many there are, and its number on this machine."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if "WORLD_SIZE" not in given:
        return 0, 1, 0
    if not all(value.isdecimal() for value in given.values()) or int(given["WORLD_SIZE"]) < 1:
        raise ValueError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers; the environment has {given}.")
    world_size = int(given["WORLD_SIZE"])
    if world_size == 1:
        return 0, 1, int(given.get("LOCAL_RANK", "0"))
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={world_size} asks for several ranks, but {', '.join(missing)} is not in the environment. "
            f"Start the program with `torchrun --nproc-per-node {world_size} ...`, or unset WORLD_SIZE for one process."
        )
    return int(given["RANK"]), world_size, int(given["LOCAL_RANK"])


def choose_device(asked: str, world_size: int = 1, local_rank: int = 0) -> torch.device:
    has_mps = torch.backends.mps.is_available()
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [f"cuda ({num_cuda})"] * (num_cuda > 0) + ["mps"] * has_mps + ["cpu"]
    there = f"This machine has: {', '.join(found)}; torch {torch.__version__}"

    if asked == "auto":
        asked = "cuda" if num_cuda else "mps" if has_mps and world_size == 1 else "cpu"
    kind, colon, number = asked.partition(":")
    if kind not in ("cuda", "mps", "cpu") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"device={asked!r} is unknown; expected auto, cuda, cuda:<number>, mps or cpu. {there}.")

    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not has_mps:
            raise ValueError(f"device=mps was asked for, but there is none. {there}. Use device=auto or device=cpu.")
        if world_size > 1:
            raise ValueError(f"device=mps works with one process; WORLD_SIZE={world_size}. Use device=cpu.")
        return torch.device("mps")

    if not num_cuda:
        raise ValueError(f"device={asked} was asked for, but there is none. {there}. Use device=auto or device=cpu.")
    if colon and world_size > 1:
        raise ValueError(f"device={asked} names one GPU for WORLD_SIZE={world_size} ranks. Use device=cuda.")
    index = int(number) if colon else local_rank
    if index >= num_cuda:
        raise ValueError(f"GPU number {index} was asked for, but there are {num_cuda}. {there}. Start fewer ranks.")
    return torch.device("cuda", index)


def _choose_compile(asked: str | bool, device: torch.device) -> bool:
    word = str(asked).lower()
    if word not in ("auto", "true", "false"):
        raise ValueError(f"compile={asked!r} is unknown; expected auto, true or false.")
    if os.environ.get("DISABLE_COMPILE", "").lower() not in ("", "0", "false"):
        return False
    return device.type == "cuda" if word == "auto" else word == "true"


def with_peers(collective: Callable[..., Any], *values: Any, **options: Any) -> Any:
    """What a collective returns; raises ConnectionAbortedError if another rank has ended, which then says why."""
    try:
        return collective(*values, **options)
    except RuntimeError as error:
        if "peer" not in str(error) and not isinstance(error, dist.DistError):
            raise
        raise ConnectionAbortedError("another rank has ended; its own message says why.") from error


@torch.no_grad()
def _apply_in_buckets(tensors: Sequence[Tensor], collective: Callable[[Tensor], object]) -> None:
    """Run an in-place collective over few flat buffers instead of once a tensor."""
    for bucket in buckets(tensors):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            collective(bucket[0])
            continue
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        collective(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, those of one type together, in lists of at most BUCKET_BYTES or of one tensor."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same_kind in by_kind.values():
        bucket: list[Tensor] = []
        num_bytes = 0
        for tensor in same_kind:
            size = tensor.numel() * tensor.element_size()
            if bucket and num_bytes + size > BUCKET_BYTES:
                yield bucket
                bucket, num_bytes = [], 0
            bucket.append(tensor)
            num_bytes += size
        if bucket:
            yield bucket
