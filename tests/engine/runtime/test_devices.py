"""The runtime chooses what the machine has, obeys the environment, and its collectives agree over two ranks."""

import json
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from dataset.common import text_metadata
from engine.build.puzzles import build_model
from engine.config import schema
from engine.runtime import devices as runtime_module
from engine.runtime.devices import Runtime, start_runtime
from tests.tiny import ARCH, ROOT, TORCHRUN, TRM, run_python

TWO_RANKS = """
import json, sys
import torch
import engine.runtime.devices
from engine.runtime.devices import start_runtime

engine.runtime.devices.BUCKET_BYTES = 24  # several buckets, and tensors larger than one
runtime = start_runtime(device="cpu", seed=7)
mine = runtime.rank + 1

sums = [
    torch.full((3, 2), float(mine)),
    torch.arange(6, dtype=torch.float32).reshape(2, 3).t() * mine,  # not contiguous
    torch.tensor(mine, dtype=torch.int64),
    torch.full((5,), float(mine), dtype=torch.float64),
    torch.full((2,), float(mine), dtype=torch.bfloat16),
    torch.ones(1, requires_grad=True) if mine == 1 else torch.full((1,), 4.0, requires_grad=True),
]
runtime.all_reduce_sum_(sums)

shared = [torch.tensor([mine, 2 * mine]), torch.tensor(mine == 1), torch.full((4,), 0.5 * mine)]
runtime.broadcast_(shared)

answer = {
    "sums": [tensor.tolist() for tensor in sums],
    "shared": [tensor.tolist() for tensor in shared],
    "rows": runtime.all_gather_rows(torch.tensor([[mine, mine * 10], [-mine, 0]])).tolist(),
    "any": [runtime.any_rank(runtime.rank == 1), runtime.any_rank(False)],
    "draw": torch.rand(1).item(),
    "is_main": runtime.is_main,
    "world_size": runtime.world_size,
}
runtime.barrier()
runtime.close()
with open(f"{sys.argv[1]}/{runtime.rank}.json", "w") as file:
    json.dump(answer, file)
"""


@pytest.fixture(autouse=True)
def no_outside_ranks(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DISABLE_COMPILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_two_ranks_agree_on_sums_rows_and_flags(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    ended = run_python([*TORCHRUN, script, tmp_path], ROOT, PYTHONPATH=str(ROOT))
    assert ended.code == 0, ended.err

    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))

    assert first["sums"] == [
        [[3.0, 3.0]] * 3,
        [[0.0, 9.0], [3.0, 12.0], [6.0, 15.0]],
        3,
        [3.0] * 5,
        [3.0, 3.0],
        [5.0],
    ]
    assert first["shared"] == [[1, 2], True, [0.5] * 4]
    assert first["rows"] == [[1, 10], [-1, 0], [2, 20], [-2, 0]]
    assert first["any"] == [True, False]
    assert (first["is_main"], second["is_main"]) == (True, False)
    assert first["world_size"] == 2
    for key in ("sums", "shared", "rows", "any", "draw"):
        assert first[key] == second[key], f"the ranks disagree on {key}"


def test_buckets_hold_one_type_and_stay_bounded(monkeypatch):
    monkeypatch.setattr(runtime_module, "BUCKET_BYTES", 32)
    sizes = {torch.float32: [4, 2, 9, 1, 1], torch.int64: [3, 1]}
    tensors = [torch.zeros(size, dtype=dtype) for dtype, counts in sizes.items() for size in counts]

    buckets = list(runtime_module.buckets(tensors))

    assert [[len(tensor) for tensor in bucket] for bucket in buckets] == [[4, 2], [9], [1, 1], [3, 1]]
    assert all(len({tensor.dtype for tensor in bucket}) == 1 for bucket in buckets)


def test_an_optimizer_that_torch_does_not_wrap_stays_as_it_is(monkeypatch):
    def plain(optimizer):
        """What a version of torch that keeps nothing from its compiler has."""

    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        monkeypatch.setattr(torch.optim.Optimizer, name, plain)
    runtime_module.leave_compiler_out()
    assert not vars(plain)


@pytest.mark.parametrize("compiles", [False, True])
def test_the_compiler_is_left_out_where_nothing_is_compiled(no_accelerator, monkeypatch, compiles):
    calls = []
    monkeypatch.setattr(runtime_module, "leave_compiler_out", lambda: calls.append(True))
    start_runtime(compile=compiles)
    assert calls == [True] * (not compiles)


def test_one_process_needs_no_process_group(no_accelerator):
    runtime = start_runtime()
    values = [torch.ones(2)]

    runtime.all_reduce_sum_(values)
    runtime.broadcast_(values)
    runtime.barrier()
    runtime.synchronize()

    assert runtime.device == torch.device("cpu")
    assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
    assert values[0].tolist() == [1.0, 1.0]
    assert runtime.all_gather_rows(values[0]).tolist() == [1.0, 1.0]
    assert runtime.any_rank(True) and not runtime.any_rank(False)
    assert not torch.distributed.is_initialized()
    runtime.close()


def test_seed_repeats_the_same_draws():
    start_runtime(device="cpu", seed=3)
    first = torch.rand(4)
    start_runtime(device="cpu", seed=3)
    again = torch.rand(4)
    start_runtime(device="cpu", seed=4)
    other = torch.rand(4)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_absent_device_says_what_is_there(no_accelerator):
    with pytest.raises(ValueError, match="device=cuda was asked for.*This machine has: cpu.*device=cpu"):
        start_runtime(device="cuda")
    with pytest.raises(ValueError, match="device=mps was asked for.*This machine has: cpu"):
        start_runtime(device="mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_unknown_device_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="expected auto, cuda, cuda:<number>, mps or cpu"):
        start_runtime(device=name)


@pytest.mark.parametrize(
    ("asked", "world_size", "local_rank", "expected"),
    [("auto", 1, 0, "cuda:0"), ("cuda", 2, 1, "cuda:1"), ("cuda:1", 1, 0, "cuda:1"), ("cpu", 1, 0, "cpu")],
)
def test_ranks_take_their_own_gpu(monkeypatch, asked, world_size, local_rank, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert runtime_module.choose_device(asked, world_size, local_rank) == torch.device(expected)


@pytest.fixture
def two_gpus(monkeypatch):
    """What a start asks of CUDA, in order."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: calls.append(("precision", name)))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: calls.append(("init", options)))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    return calls


def test_float32_is_multiplied_as_tf32_on_cuda_alone(two_gpus):
    start_runtime(device="cpu")
    assert two_gpus == []
    start_runtime(device="cuda:1")
    assert two_gpus == [("set_device", torch.device("cuda:1")), ("precision", "high")]


def test_ranks_on_gpus_are_bound_to_theirs_before_they_meet(two_gpus, monkeypatch):
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    runtime = start_runtime(device="auto")
    own = torch.device("cuda:1")
    assert [name for name, _ in two_gpus] == ["set_device", "precision", "init"] and two_gpus[0][1] == own
    options = two_gpus[-1][1]
    assert options["backend"] == "cpu:gloo,cuda:nccl" and options["device_id"] == own and options["store"] is None
    barriers, votes = [], []
    monkeypatch.setattr(torch.distributed, "barrier", lambda **given: barriers.append(given))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: votes.append(tensor.device.type))
    runtime.barrier()
    assert barriers == [{"device_ids": [1]}]
    assert runtime.any_rank(True) and votes == ["cpu"], "a vote does not wait for the device"


def test_ranks_that_torchrun_starts_again_do_not_read_what_killed_ones_left(monkeypatch):
    opened = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: opened.append(options["store"]))
    server = torch.distributed.TCPStore("localhost", 0, is_master=True)
    ranks = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(server.port),
    }
    for name, value in (ranks | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    for restart in range(3):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        start_runtime(device="cpu")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # then each restart has a store of its own
    start_runtime(device="cpu")
    first, second, third, own = opened
    assert first is None and own is None
    second.set("address", "of a killed rank")
    assert second.check(["address"]) and not third.check(["address"]) and not server.check(["address"])


def test_more_ranks_than_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(ValueError, match="GPU number 2 was asked for, but there are 2"):
        runtime_module.choose_device("auto", 3, 2)
    with pytest.raises(ValueError, match="names one GPU for WORLD_SIZE=2"):
        runtime_module.choose_device("cuda:0", 2, 1)


@pytest.mark.parametrize(
    ("asked", "device", "disable", "expected"),
    [
        ("auto", "cuda", None, True),
        ("auto", "cpu", None, False),
        ("auto", "mps", None, False),
        (True, "cpu", None, True),
        ("true", "cpu", "0", True),
        ("false", "cuda", None, False),
        (True, "cuda", "1", False),
        ("auto", "cuda", "1", False),
    ],
)
def test_compile_follows_the_choice_unless_disabled(monkeypatch, asked, device, disable, expected):
    if disable is not None:
        monkeypatch.setenv("DISABLE_COMPILE", disable)

    assert runtime_module._choose_compile(asked, torch.device(device)) is expected


def test_unknown_compile_choice_is_refused():
    with pytest.raises(ValueError, match="compile='yes' is unknown; expected auto, true or false"):
        start_runtime(device="cpu", compile="yes")


def test_half_given_ranks_name_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not in the environment.*torchrun"):
        start_runtime(device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="must be whole numbers.*'two'"):
        start_runtime(device="cpu")


def test_batches_keep_their_types():
    runtime = Runtime(device=torch.device("cpu"), rank=0, world_size=1, use_compile=False)
    batch = {
        "inputs": torch.tensor([[1, 2]], dtype=torch.int32),
        "mask": torch.tensor([True, False]),
        "weight": torch.tensor([0.5]),
    }

    moved = runtime.to_device(batch)

    assert {name: tensor.dtype for name, tensor in moved.items()} == {
        "inputs": torch.int32,
        "mask": torch.bool,
        "weight": torch.float32,
    }
    assert all(torch.equal(moved[name], batch[name]) for name in batch)


def test_whatever_holds_tensors_is_moved_whole():
    class Pair(NamedTuple):
        left: torch.Tensor
        right: torch.Tensor | None

    runtime = Runtime(device=torch.device("meta"), rank=0, world_size=1, use_compile=False)
    moved = runtime.to_device([(Pair(torch.ones(2), None), {"rows": torch.ones(3)}), "name"])

    ((pair, batch), name) = moved
    assert isinstance(pair, Pair) and pair.right is None and name == "name"
    assert pair.left.is_meta and batch["rows"].is_meta and batch["rows"].shape == (3,)


@pytest.mark.skipif(sys.platform != "linux", reason="the switch is glibc's")
def test_only_where_shapes_repeat_large_freed_blocks_are_kept(monkeypatch):
    told = []
    libc = SimpleNamespace(mallopt=lambda switch, value: told.append((switch, value)))
    monkeypatch.setattr(runtime_module.ctypes, "CDLL", lambda name: libc)
    largest_block = -3
    runtime = start_runtime("cpu", compile=False)
    assert dict(told)[largest_block] <= 2**25
    config = schema.ArchChoice.model_validate({"name": TRM} | ARCH)
    build_model(config, text_metadata(16, 6, pad_id=0), rows=1, runtime=runtime)
    assert dict(told)[largest_block] >= 2**30
