"""Checkpoints are found, and a missing, damaged, foreign or misfitting one is answered with what to do."""

import json
import os
import re
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from engine.checkpoints.save import CheckpointStore
from engine.checkpoints.load import load_checkpoint, load_weights, strip_prefixes


@pytest.fixture
def two_steps(tmp_path):
    """A run folder with the steps 1 and 2, whose weights are filled with 1 and 2."""
    store = CheckpointStore(tmp_path / "run")
    for step in (1, 2):
        weights = {"model.inner.weight": torch.full((2, 3), float(step))}
        store.save(step, model=weights, ema=weights, trainer={"step": step}, config_yaml="arch: {}\n", meta={})
    store.wait()
    return store.run_dir


# Finding a checkpoint


def test_run_folder_means_best_then_latest_then_the_highest(two_steps):
    assert load_checkpoint(two_steps).path == two_steps / "step_2"
    (two_steps / "best").symlink_to("step_1")
    assert load_checkpoint(str(two_steps)).path == two_steps / "step_1"
    (two_steps / "best").unlink()
    (two_steps / "latest").unlink()
    assert load_checkpoint(two_steps).path == two_steps / "step_2"
    assert load_checkpoint(two_steps / "step_1" / "model.safetensors").path == two_steps / "step_1"


def test_pattern_must_mean_one_checkpoint_unless_newest_picks(two_steps):
    os.utime(two_steps / "step_1" / "meta.json", (1, 1))
    (two_steps / "metrics.jsonl").write_text("")

    assert load_checkpoint(two_steps.parent / "r*").path == two_steps / "step_2"
    assert load_checkpoint(two_steps / "*_1").path == two_steps / "step_1"
    assert load_checkpoint(two_steps / "*", newest=True).path == two_steps / "step_2"
    with pytest.raises(ValueError, match=r"2 checkpoints.*step_1, .*step_2"):
        load_checkpoint(two_steps / "step_*").path


def test_folder_named_like_a_pattern_is_taken_as_it_is(tmp_path):
    (tmp_path / "run[1]").mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "run[1]" / "step_5")
    assert load_checkpoint(tmp_path / "run[1]" / "step_5").path.name == "step_5"


@pytest.mark.parametrize("wanted", ["step_7", "nowhere/step_1", "step_7*"])
def test_missing_checkpoint_lists_what_is_there(two_steps, wanted):
    with pytest.raises(ValueError, match=r"latest/, step_1/, step_2/"):
        load_checkpoint(two_steps / wanted).path


def test_empty_run_folder_says_so(tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        load_checkpoint(tmp_path).path


# Damaged and foreign files


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "trainer.pt"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_file_is_named(two_steps, name, damage):
    path = two_steps / "step_2" / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[-3] ^= 1
        path.write_bytes(content[:-1] if damage == "cut" else content)

    said = {"cut": "has .* bytes instead of", "changed": "is not what was saved", "gone": "is missing"}[damage]
    with pytest.raises(ValueError, match=rf"{name} {said}.*step_1/"):
        load_checkpoint(two_steps / "step_2", with_trainer=True)
    if damage != "changed":
        assert CheckpointStore(two_steps).latest_step() == 1
        assert load_checkpoint(two_steps).path == two_steps / "step_1"


@pytest.mark.parametrize("content", [b"Pieces", b"piece", b""])
def test_a_tokenizer_that_changed_is_named(tmp_path, content):
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"pieces")
    store = CheckpointStore(tmp_path / "run")
    weights = {"weight": torch.ones(1)}
    store.save(1, model=weights, ema=None, trainer={}, config_yaml="arch: {}\n", meta={}, files=[tokenizer])
    store.wait()
    kept = tmp_path / "run" / "step_1" / "tokenizer.model"
    assert load_checkpoint(tmp_path / "run").files == [kept]
    kept.write_bytes(content)
    with pytest.raises(ValueError, match=r"step_1/tokenizer\.model"):
        load_checkpoint(tmp_path / "run")


def test_inference_needs_no_trainer_file_but_resuming_does(two_steps):
    folder = two_steps / "step_2"
    meta = json.loads((folder / "meta.json").read_text())
    del meta["files"]["trainer.pt"]
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "trainer.pt").unlink()

    assert load_checkpoint(folder).weights["model.inner.weight"][0, 0] == 2
    with pytest.raises(ValueError, match=r"trainer\.pt"):
        load_checkpoint(folder, with_trainer=True)


def test_config_may_be_edited_by_hand(two_steps):
    edited = "arch: {}\n# moved to another machine\n"
    (two_steps / "step_2" / "config.yaml").write_text(edited)
    said: list[str] = []
    assert load_checkpoint(two_steps, say=said.append).config_yaml == edited
    assert len(said) == 1 and "step_2/config.yaml" in said[0]
    load_checkpoint(two_steps / "step_1", say=said.append)
    assert len(said) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {"model.safetensors": 3}}', None])
def test_folder_without_a_good_meta_file_is_not_whole(two_steps, content):
    meta = two_steps / "step_2" / "meta.json"
    meta.unlink() if content is None else meta.write_text(content)
    with pytest.raises(ValueError, match=r"step_2.*meta\.json"):
        load_checkpoint(two_steps / "step_2")


def test_reference_file_loads_without_its_prefixes(tmp_path):
    path = tmp_path / "step_100"
    weights = {"_orig_mod.model.inner.w": torch.randn(2, 2), "_orig_mod.model.inner.H_init": torch.ones(3).bfloat16()}
    torch.save(weights, path)
    (tmp_path / "all_config.yaml").write_text("arch: {name: trm}\n")

    loaded = load_checkpoint(path)

    assert loaded.path == path and loaded.ema is None and loaded.trainer is None
    assert torch.equal(loaded.weights["model.inner.w"], weights["_orig_mod.model.inner.w"])
    assert loaded.weights["model.inner.H_init"].dtype == torch.bfloat16
    assert loaded.config_yaml == "arch: {name: trm}\n"
    assert load_checkpoint(tmp_path / "step_*").path == path
    with pytest.raises(ValueError, match="holds weights only"):
        load_checkpoint(path, with_trainer=True)


def test_reference_file_with_code_is_not_executed(tmp_path):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"w": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt.*mkdir") as refused:
        load_checkpoint(tmp_path / "bad.pt")
    assert not marker.exists()
    assert not re.search("weights_only|trust|allowlist|safe_globals", str(refused.value)), "how to load it all the same"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"w": torch.ones(1)}, "step": 3}, r"state dict.*'model' \(dict\), 'step' \(int\)"),
        ([torch.ones(1)], "holds a list; expected a dict"),
        ({}, "state dict.*found nothing"),
    ],
)
def test_other_torch_files_are_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=said):
        load_checkpoint(tmp_path / "other.pt")


@pytest.fixture(scope="module")
def reference_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    weights = {"_orig_mod.model.a": torch.randn(20, 30), "b": torch.zeros(3, dtype=torch.bfloat16)}
    torch.save(weights, folder / "zip")
    torch.save(weights, folder / "legacy", _use_new_zipfile_serialization=False)
    assert zipfile.is_zipfile(folder / "zip")
    return [(folder / name).read_bytes() for name in ("zip", "legacy")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_reference_files_give_weights_or_a_value_error(tmp_path, reference_bytes, data):
    content = bytearray(data.draw(st.sampled_from(reference_bytes)))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, min(len(content) - 1, 1500)))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)

    try:
        weights = load_checkpoint(path).weights
    except ValueError as problem:
        assert "damaged.pt" in str(problem)
    else:
        assert all(isinstance(value, torch.Tensor) for value in weights.values())


# Weights into modules


class Network(nn.Module):
    def __init__(self, hidden_size: int = 4, puzzles: int = 3, width: int = 2) -> None:
        super().__init__()
        self.lm_head = nn.Linear(hidden_size, 5, bias=False)
        self.puzzle_emb = nn.Module()
        self.puzzle_emb.register_buffer("weights", torch.arange(puzzles * width).reshape(puzzles, width).float())
        self.register_buffer("H_init", torch.ones(hidden_size, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_orig_mod.model.inner.w", "model.inner.w"),
        ("module.model.w", "model.w"),
        ("module._orig_mod.model.w", "model.w"),
        ("_orig_mod.module.model.w", "model.w"),
        ("model._orig_mod.inner._orig_mod.w", "model.inner.w"),
        ("model.module.w", "model.module.w"),
        ("w", "w"),
    ],
)
def test_prefixes_are_stripped(name, plain):
    assert list(strip_prefixes({name: torch.ones(1)})) == [plain]


def test_a_name_with_and_without_prefix_is_ambiguous():
    with pytest.raises(ValueError, match="'w' twice"):
        strip_prefixes({"w": torch.ones(1), "_orig_mod.w": torch.zeros(1)})


def test_weights_load_into_plain_and_wrapped_modules():
    source, target = Network(), Network()
    state = {f"_orig_mod.{name}": value for name, value in source.state_dict().items()}
    state["_orig_mod.H_init"] = torch.full((4,), 0.5)

    assert load_weights(target, state, source="file") == []
    assert torch.equal(target.lm_head.weight, source.lm_head.weight)
    assert target.H_init.dtype == torch.bfloat16 and target.H_init.tolist() == [0.5] * 4

    wrapped = nn.Module()
    wrapped._orig_mod = Network()
    load_weights(wrapped, source.state_dict(), source="file")
    assert torch.equal(wrapped._orig_mod.lm_head.weight, source.lm_head.weight)
    assert source.lm_head.weight.requires_grad and source.lm_head.weight.grad is None


def test_every_difference_is_listed_and_nothing_is_changed():
    target = Network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    weights = Network(hidden_size=6).state_dict() | {"extra.mlp.weight": torch.ones(7)}
    del weights["puzzle_emb.weights"]

    with pytest.raises(ValueError) as caught:
        load_weights(target, weights, source="step_9")

    message = str(caught.value)
    for line in (
        "weights of step_9 do not fit this model (4 differ)",
        "lm_head.weight: (5, 6) there, (5, 4) here",
        "H_init: (6,) there, (4,) here",
        "extra.mlp.weight: (7,) there, unknown here",
        "puzzle_emb.weights: missing there, (3, 2) here",
        "arch.hidden_size",
        "vocabulary",
        "arch.puzzle_emb_ndim",
        "arch.expansion",
    ):
        assert line in message
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_table_for_other_puzzles_starts_at_the_mean():
    target = Network(puzzles=5)
    notices = load_weights(target, Network(puzzles=3).state_dict(), source="step_9")

    assert target.puzzle_emb.weights.tolist() == [[2.0, 3.0]] * 5
    assert len(notices) == 1 and "3 rows in step_9 and 5 here" in notices[0]


def test_table_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"(?s)weights: \(3, 4\) there, \(3, 2\) here.*puzzle_emb_ndim"):
        load_weights(Network(), Network(width=4).state_dict(), source="file")
