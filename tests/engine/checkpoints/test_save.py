"""Checkpoints come back as they were saved, and the right ones are kept."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from engine.checkpoints import save as checkpoint_module
from engine.checkpoints.save import CheckpointError, CheckpointStore
from engine.checkpoints.load import load_checkpoint

CONFIG = "arch:\n  hidden_size: 4\n"


def save(store: CheckpointStore, step: int, *, value: float | None = None, **changes) -> None:
    filled = float(step) if value is None else value
    content = {
        "model": {"model.inner.weight": torch.full((2, 3), filled)},
        "ema": None,
        "trainer": {"step": step},
        "config_yaml": CONFIG,
        "meta": {"metric": 0.5},
    }
    store.save(step, **(content | changes))


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run")


@pytest.fixture
def two_steps(store):
    save(store, 1)
    save(store, 2)
    store.wait()
    return store.run_dir


# Saving and loading


def test_everything_saved_comes_back(store, tmp_path):
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"pieces")
    model = {
        "weight": torch.randn(3, 5),
        "turned": torch.arange(6.0).reshape(2, 3).t(),
        "buffer": torch.randn(4).bfloat16(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "wide": torch.zeros(1, 3).expand(4, 3),
    }
    ema = {"weight": torch.randn(3, 5)}
    trainer = {
        "rng": torch.get_rng_state(),
        "optimizer": {"state": {0: {"exp_avg": torch.randn(3, 5), "step": 12}}, "lr": [1e-4, 0.5]},
        "carry": (torch.zeros(2, dtype=torch.bool), None),
        "name": "run",
        "done": False,
    }

    store.save(12, model=model, ema=ema, trainer=trainer, config_yaml=CONFIG, meta={"metric": 0.25}, files=[tokenizer])
    store.wait()
    loaded = load_checkpoint(store.path_of(12), with_trainer=True)

    torch.testing.assert_close(loaded.weights, model, rtol=0, atol=0)
    torch.testing.assert_close(loaded.ema, ema, rtol=0, atol=0)
    assert isinstance(loaded.trainer["carry"], tuple) and loaded.trainer["carry"][1] is None
    assert loaded.trainer["carry"][0].dtype == torch.bool
    assert torch.equal(loaded.trainer["rng"], trainer["rng"])
    assert torch.equal(loaded.trainer["optimizer"]["state"][0]["exp_avg"], trainer["optimizer"]["state"][0]["exp_avg"])
    assert (loaded.trainer["name"], loaded.trainer["done"], loaded.trainer["optimizer"]["lr"]) == (
        "run",
        False,
        [1e-4, 0.5],
    )
    assert loaded.config_yaml == CONFIG
    assert loaded.path == store.path_of(12)
    assert [path.read_bytes() for path in loaded.files] == [b"pieces"]
    assert loaded.meta["step"] == 12 and loaded.meta["metric"] == 0.25
    assert loaded.meta["torch"] == torch.__version__ and loaded.meta["parameters"] == 15 + 6 + 4 + 1 + 12
    assert {name: entry["size"] for name, entry in loaded.meta["files"].items()} == {
        path.name: path.stat().st_size for path in store.path_of(12).iterdir() if path.name != "meta.json"
    }


def test_tied_weights_and_compile_prefixes_are_saved_plainly(store):
    table = torch.randn(4, 2)
    save(store, 1, model={"_orig_mod.model.embed": table, "_orig_mod.model.head": table, "view": table[1:, :1]})
    store.wait()

    weights = load_checkpoint(store.path_of(1)).weights

    assert sorted(weights) == ["model.embed", "model.head", "view"]
    assert torch.equal(weights["model.embed"], table) and torch.equal(weights["model.head"], table)
    assert torch.equal(weights["view"], table[1:, :1])


def test_training_may_go_on_while_the_save_is_written(store, monkeypatch):
    may_write = threading.Event()
    write_folder = checkpoint_module._write_folder

    def slow_disk(folder, snapshot):
        may_write.wait(timeout=10)
        write_folder(folder, snapshot)

    monkeypatch.setattr(checkpoint_module, "_write_folder", slow_disk)
    weight, moment = torch.ones(2), torch.ones(2)
    save(store, 1, model={"w": weight}, ema={"w": weight}, trainer={"moments": [moment]})
    weight.add_(100)
    moment.add_(100)
    assert store.latest_step() is None, "the step must not be visible before it is whole"
    may_write.set()
    store.wait()

    loaded = load_checkpoint(store.path_of(1), with_trainer=True)
    assert loaded.weights["w"].tolist() == loaded.ema["w"].tolist() == [1.0, 1.0]
    assert loaded.trainer["moments"][0].tolist() == [1.0, 1.0]


def test_trainer_state_of_foreign_types_names_the_place(store):
    with pytest.raises(TypeError, match=r"trainer\.sampler\[1\] is a Path|trainer\.sampler\[1\] is a PosixPath"):
        save(store, 1, trainer={"sampler": [1, Path("x")]})
    with pytest.raises(ValueError, match=r"config\.yaml"):
        save(store, 1, files=[Path("config.yaml")])
    assert store.latest_step() is None


# Which steps are kept, and what the links say


def test_links_are_relative_and_move_with_the_run(two_steps, tmp_path):
    store = CheckpointStore(two_steps)
    store.mark_best(1)
    store.wait()
    moved = tmp_path / "moved"
    shutil.move(two_steps, moved)

    assert os.readlink(moved / "latest") == "step_2"
    assert os.readlink(moved / "best") == "step_1"
    assert load_checkpoint(moved).path == moved / "step_1"


def test_keep_last_never_drops_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in range(1, 6):
        save(store, step)
        if step == 2:
            store.mark_best(2)
    store.wait()

    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_2", "step_4", "step_5"]
    store.mark_best(5)
    save(store, 6)
    store.wait()
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_5", "step_6"]
    assert store.latest_step() == 6


def test_keep_last_leaves_later_steps_of_a_rewound_run(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 30)
    store.wait()
    save(store, 10)
    save(store, 20)
    store.wait()

    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_20", "step_30"]
    assert store.latest_step() == 20, "what was saved last counts, not the highest number"


def test_best_waits_for_its_write_and_must_exist(store):
    save(store, 3)
    store.mark_best(3)
    store.wait()
    assert os.readlink(store.run_dir / "best") == "step_3"

    store.mark_best(4)
    with pytest.raises(CheckpointError, match="step_4"):
        store.wait()


def test_saving_a_step_again_replaces_it(store):
    save(store, 1, value=1.0)
    save(store, 1, value=5.0)
    store.wait()

    assert load_checkpoint(store.path_of(1)).weights["model.inner.weight"][0, 0] == 5
    assert sorted(path.name for path in store.run_dir.iterdir()) == ["latest", "step_1"]


def test_file_systems_without_links_still_have_a_latest_step(store, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.warns(UserWarning, match="no symbolic links"):
        save(store, 4)
        store.wait()

    assert store.latest_step() == 4
    assert load_checkpoint(store.run_dir).path == store.path_of(4)
