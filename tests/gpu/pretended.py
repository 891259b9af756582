"""A pretended accelerator: its tensors say that they lie on `cuda:0` or `mps:0`, while their values are on the host.

What such a device refuses is refused: two devices in one operation, `.numpy()`, and with the rules of MPS what has 64-bit
floats or complex numbers. What makes the host wait is counted by the line of ours that does it, and so is every launch
of a kernel. The device is registered for the whole process: run it in a process of its own (`tests/gpu/drive.py`).
"""

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

Kind = Literal["cuda", "mps"]
ROOT, OWN_FOLDER = Path(__file__).resolve().parents[2], str(Path(__file__).parent)
# Which move what others ask for: those count as waiting.
ON_BEHALF_OF_OTHERS = ("engine/runtime/transfer.py", "engine/runtime/devices.py")
HIDDEN_NAME = "pretended"  # of the device as torch's own code sees it
REFUSED_BY_MPS = {
    *(torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
}
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}  # give the host a number
SIZED_BY_VALUES = {"nonzero", "unique", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount"}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}
COPIES = {"_to_copy", "copy_", "_copy_from"}
JOINING = {"cat", "stack"}  # which take not even a number of the host
NO_KERNEL = {
    *("detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias", "empty", "empty_like", "empty_strided"),
    *("new_empty", "new_empty_strided", "set_"),
}


class _Backend(_DummyBackendModule):
    def is_available(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_setup_privateuseone_for_python_backend(HIDDEN_NAME, _Backend())
HIDDEN = torch.device(HIDDEN_NAME, 0)


class OnDevice(Tensor):
    """A tensor that says it lies on the device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=HIDDEN, requires_grad=requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Pretended.current().run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held!r})"

    def numpy(self, **_: Any) -> Any:
        Pretended.current().refuse("numpy reads host memory only")

    def record_stream(self, stream: Any) -> None:
        """Everything happens in order here."""

    def tolist(self) -> Any:
        Pretended.current().waits("read")
        return self.held.tolist()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        made = torch.nn.Parameter(new, self.requires_grad) if isinstance(self, torch.nn.Parameter) else new
        torch.utils.swap_tensors(self, made)


class RefusedError(RuntimeError):
    """What a real device would refuse, with the line of ours that asked for it."""


class Pretended(TorchDispatchMode):
    """Within it tensors can be made on the device, whose `name` is what the code under test sees.

    Within `counting`, `waited` counts what makes the host wait and `launched` the kernels.
    """

    _current: "Pretended | None" = None

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.device = torch.device(kind, 0)
        self.pinned: list[StorageWeakRef] = []
        self.unfinished: list[tuple[int, Tensor, Tensor]] = []  # number, host memory that it still fills, and with what
        self.is_counting = False
        self.num_started = 0
        self.waited: Counter[str] = Counter()  # "file: source line (kind)"
        self.line_numbers: dict[str, int] = {}
        self.launched: Counter[str] = Counter()

    @classmethod
    def current(cls) -> "Pretended":
        assert cls._current is not None, "a tensor of the device is used where there is none"
        return cls._current

    @contextmanager
    def entered(self) -> Iterator["Pretended"]:
        """Within, the device is there: for this thread, and for what autograd computes on its behalf."""
        lifted = torch._C._only_lift_cpu_tensors()
        with ExitStack() as stack:
            stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
            torch._C._set_only_lift_cpu_tensors(True)
            stack.enter_context(mock.patch.object(Pretended, "_current", self))
            for module in (torch.cuda, torch.mps):
                stack.enter_context(mock.patch.object(module, "synchronize", lambda *_: self.waits("synchronize")))
            for name, stand_in in {"Event": _Event, "Stream": _Stream}.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
            for name in ("current_stream", "default_stream"):
                stack.enter_context(mock.patch.object(torch.cuda, name, _Stream))
            stack.enter_context(mock.patch.object(torch.cuda, "stream", lambda stream: ExitStack()))
            memory = {"mem_get_info": (24 * 10**9, 24 * 10**9), "memory_reserved": 0, "memory_allocated": 0}
            for name, value in memory.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, lambda _, value=value: value))
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(_Names(self))
            stack.enter_context(self)
            yield self

    @contextmanager
    def counting(self) -> Iterator[None]:
        with mock.patch.object(self, "is_counting", True):
            yield

    # What is counted.
    def waits(self, kind: str, up_to: int | None = None) -> None:
        """The host waits, here; the copies to it that were started before, or those up to a number, are done."""
        done = [copy for copy in self.unfinished if up_to is None or copy[0] <= up_to]
        self.unfinished = self.unfinished[len(done) :]
        for _, target, value in done:
            target.copy_(value)
        if self.is_counting:
            file, number = _line_of_ours()
            name = f"{file}: {linecache.getline(str(ROOT / file), number).strip()} ({kind})"
            self.waited[name] += 1
            self.line_numbers[name] = number

    def is_pinned(self, tensor: Tensor) -> bool:
        self.pinned = [known for known in self.pinned if not known.expired()]
        return any(known.cdata == tensor.untyped_storage()._cdata for known in self.pinned)

    def pin(self, tensor: Tensor) -> Tensor:
        self.pinned.append(StorageWeakRef(tensor.untyped_storage()))
        return tensor

    # What an operation does.
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        name, tensors = func.overloadpacket.__name__, _tensors([args, kwargs])
        ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        kwargs, wanted = dict(kwargs), kwargs.get("device")
        is_pinned = bool(kwargs.pop("pin_memory", False)) and not self._is_ours(wanted)
        if self._is_ours(wanted):
            kwargs["device"] = torch.device("cpu")
        if name in COPIES:
            gives_ours = self._copied(name, args, kwargs, wanted, ours)
            if name == "_to_copy" and ours and not gives_ours and kwargs.get("non_blocking"):
                return self._arriving(func(*_held(args), **kwargs))
        elif wanted is not None and not ours:
            gives_ours = self._is_ours(wanted)
        else:
            self._check_places(name, func, args, ours, host)
            self._count_waits(name, func, args, ours, host)
            gives_ours = bool(ours) and func not in READS
        if ours or gives_ours:
            self._count_launch(name, func)
        found = func(*_held(args), **_held(kwargs))
        schema = func._schema
        writes = [value.alias_info is not None and value.alias_info.is_write for value in schema.returns]
        if schema.is_mutable and writes == [True] and isinstance(found, Tensor):
            return kwargs.get("out", args[0] if args else None)  # what was written to is what was given
        if is_pinned:
            return self.pin(found)
        return _mapped(self._put, found) if gives_ours else found

    def _is_ours(self, device: Any) -> bool:
        return device is not None and torch.device(device).type in (HIDDEN_NAME, self.kind)

    def _put(self, tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        if self.kind == "mps" and tensor.dtype in REFUSED_BY_MPS:
            self.refuse(f"MPS has no {tensor.dtype}")
        return tensor if isinstance(tensor, OnDevice) else OnDevice(tensor)

    def refuse(self, what: str) -> None:
        file, number = _line_of_ours()
        raise RefusedError(f"{file}:{number}: {what}")

    def _check_places(self, name: str, func: Any, args: Any, ours: Sequence[Tensor], host: Sequence[Tensor]) -> None:
        """A kernel reads what lies on its device, and numbers that the host gives it."""
        if not ours or not host:
            return
        if name in INDEXING:
            if not isinstance(args[0], OnDevice):
                self.refuse(f"{func} indexes a tensor of the host by one of the device")
            return
        is_written = func._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], OnDevice)
        apart = host if name in JOINING or is_written else [tensor for tensor in host if tensor.ndim]
        if apart:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in apart)
            self.refuse(f"{func} takes tensors of the device and of the host, {shapes}")

    def _count_waits(self, name: str, func: Any, args: Any, ours: Sequence[Tensor], host: Sequence[Tensor]) -> None:
        if not ours:
            return
        if func in READS:
            self.waits("read")
        sizes_itself = name == "repeat_interleave" and func._schema.overload_name != "self_int"
        if name in SIZED_BY_VALUES or sizes_itself:
            self.waits(name.strip("_"))
        if name in INDEXING:
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            for _ in (index for index in indices if not isinstance(index, OnDevice)):
                self.waits("upload of an index")
            for _ in (index for index in indices if index.dtype in (torch.bool, torch.uint8)):
                self.waits("mask as index")

    def _copied(self, name: str, args: Any, kwargs: Any, wanted: Any, ours: Sequence[Tensor]) -> bool:
        """Whether the copy lies on the device; one between host and device is counted where it waits."""
        target, source = (None, args[0]) if name == "_to_copy" else args[:2]
        was_ours = isinstance(source, OnDevice)
        if target is not None:
            is_ours = isinstance(target, OnDevice)
        else:
            is_ours = self._is_ours(wanted) if wanted is not None else was_ours
        if was_ours == is_ours:
            return is_ours
        if self.kind == "mps" and torch.float64 in (source.dtype, kwargs.get("dtype"), *(t.dtype for t in ours)):
            self.refuse("MPS has no torch.float64")
        is_async = bool(kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2]))
        memory = source if is_ours else target  # a new one in host memory is pinned where the copy is not to wait
        if not is_async or (memory is not None and not self.is_pinned(memory)):
            self.waits("upload" if is_ours else "download")
        return is_ours

    def _arriving(self, value: Tensor) -> Tensor:
        """Host memory that holds something else until the host has waited for the device."""
        target = value.logical_not() if value.dtype == torch.bool else torch.full_like(value, -77)
        self.num_started += 1
        self.unfinished.append((self.num_started, target, value))
        return self.pin(target)

    def _count_launch(self, name: str, func: Any) -> None:
        schema = func._schema
        is_view = not schema.is_mutable and any(value.alias_info is not None for value in schema.returns)
        if self.is_counting and not is_view and name not in NO_KERNEL:
            self.launched[name] += 1


class _Names(TorchFunctionMode):
    """Gives the device the name of a real one, which the code under test asks for and passes on."""

    def __init__(self, device: Pretended) -> None:
        super().__init__()
        self.of = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        asked = getattr(func, "__self__", None)
        if any(asked is getter for getter in GETTERS) and isinstance(args[0], OnDevice):
            return self.of.device if asked is torch.Tensor.device else asked is getattr(Tensor, f"is_{self.of.kind}")
        if func in (Tensor.pin_memory, Tensor.is_pinned):
            if isinstance(args[0], OnDevice):
                raise RuntimeError("only host memory can be pinned")
            if func is Tensor.is_pinned or self.of.is_pinned(args[0]):
                return args[0] if func is Tensor.pin_memory else self.of.is_pinned(args[0])
            return self.of.pin(args[0].clone())
        args = tuple(self._hidden(value) for value in args)
        if "device" in kwargs:
            kwargs = kwargs | {"device": self._hidden(kwargs["device"])}
        return func(*args, **kwargs)

    def _hidden(self, value: Any) -> Any:
        names_device = isinstance(value, torch.device) and value.type == self.of.kind
        return HIDDEN if names_device or (isinstance(value, str) and value.split(":")[0] == self.of.kind) else value


GETTERS = [Tensor.device, Tensor.is_cuda, Tensor.is_mps]


class _Event:
    """torch.cuda.Event, as far as it is about waiting."""

    def __init__(self, **_: Any) -> None:
        self.started = 0

    def record(self, stream: Any = None) -> None:
        self.started = Pretended.current().num_started

    def synchronize(self) -> None:
        Pretended.current().waits("event", self.started)

    def query(self) -> bool:
        return False

    def wait(self, stream: Any = None) -> None:
        """Makes the device wait, not the host."""


class _Stream:
    """torch.cuda.Stream, on which everything happens in order."""

    def __init__(self, *_: Any, **__: Any) -> None:
        return

    def wait_stream(self, other: Any) -> None:
        """Makes the device wait, not the host."""

    wait_event = wait_stream

    def record_event(self, event: _Event | None = None) -> _Event:
        event = event or _Event()
        event.record()
        return event

    def synchronize(self) -> None:
        Pretended.current().waits("synchronize")


def _held(tree: Any) -> Any:
    return _mapped(lambda value: value.held if isinstance(value, OnDevice) else value, tree)


def _mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """What torch's own tree functions do, for the arguments and results of operations, in a fraction of the time."""
    if isinstance(tree, (list, tuple)):
        return type(tree)([_mapped(change, value) for value in tree])
    if isinstance(tree, dict):
        return {key: _mapped(change, value) for key, value in tree.items()}
    return change(tree)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(lambda value: found.append(value) if isinstance(value, Tensor) else None, tree)
    return found


def _line_of_ours() -> tuple[str, int]:
    """The innermost line of this repository, these tests aside, that is being executed."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        is_ours = name.startswith(str(ROOT)) and "site-packages" not in name and not name.startswith(OWN_FOLDER)
        if is_ours and not name.endswith(ON_BEHALF_OF_OTHERS):
            return str(Path(name).relative_to(ROOT)), frame.f_lineno
        frame = frame.f_back
    return "outside of the repository", 0
