"""From a checked config to data, model and optimizers."""

import shutil
from unittest import mock

import pytest
import torch

from dataset.puzzles.format import read_metadata
from engine.build import puzzles as build
from engine.config.check import check
from engine.config.schema import PretrainConfig
from engine.train.update_rules import AdamATan2, SparseSignSGD
from tests.tiny import ARCH, CPU, RUN, TRM, edit_json, flags, pretrain, write_sudoku


def config(*data, arch=None, **changes) -> PretrainConfig:
    settings = RUN | {"arch": {"name": TRM} | ARCH | (arch or {}), "data_paths": [str(path) for path in data]}
    return check(PretrainConfig, settings | changes)


@pytest.fixture
def data(tmp_path):
    return write_sudoku(tmp_path / "data", identifiers=6)


def built(data, **changes):
    chosen = config(data, **changes)
    return chosen, build.build_model(chosen.arch, read_metadata(data, "train"), 8, CPU)


def test_the_model_is_as_large_as_the_data_asks(data):
    _, head = built(data, arch={"puzzle_emb_ndim": 32, "pos_encodings": "learned"})
    inner = head.model.inner
    assert inner.embed_tokens.embedding_weight.shape == (6, 32) and inner.lm_head.weight.shape == (6, 32)
    assert inner.puzzle_emb.weights.shape == (6, 32)
    assert inner.embed_pos.embedding_weight.shape == (17, 32), "16 cells and a prefix"


def test_every_rank_gets_the_weights_and_the_table_of_the_first_one(data):
    class Second(type(CPU)):
        def broadcast_(self, tensors):
            for tensor in tensors:
                tensor.data.fill_(0.5)

    chosen = config(data, arch={"puzzle_emb_ndim": 32})
    runtime = Second(CPU.device, rank=1, world_size=2, use_compile=False)
    head = build.build_model(chosen.arch, read_metadata(data, "train"), 4, runtime)
    assert {float(tensor.flatten()[0]) for tensor in head.state_dict().values()} == {0.5}


def test_the_seed_decides_the_first_weights(data):
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(built(data)[1].state_dict())
    name = "model.inner.L_level.layers.0.mlp.down_proj.weight"
    assert torch.equal(heads[0][name], heads[1][name]) and not torch.equal(heads[0][name], heads[2][name])


def test_the_puzzle_table_steps_first_and_each_optimizer_has_its_rate(data):
    chosen, head = built(data, arch={"puzzle_emb_ndim": 32}, lr=1e-3, puzzle_emb_lr=0.1, weight_decay=0.25)
    optimizers = build.build_optimizers(chosen, head, CPU, total_steps=20)
    (sparse, sparse_lr), (network, network_lr) = optimizers.members
    assert isinstance(sparse, SparseSignSGD) and isinstance(network, AdamATan2)
    assert (sparse_lr, network_lr) == (0.1, 1e-3)
    assert network.param_groups[0]["weight_decay"] == 0.25 and network.param_groups[0]["betas"] == (0.9, 0.95)
    assert optimizers.step(1) == pytest.approx(0.5e-3), "half way through the warm-up"
    assert sparse.param_groups[0]["lr"] == pytest.approx(0.05)


def test_muon_and_what_it_leaves_out_have_rates_and_decays_of_their_own(data):
    options = {"muon_momentum": 0.8, "muon_aux_lr_scale": 0.1, "muon_aux_weight_decay": 0.5}
    chosen, head = built(data, optimizer="muon", lr=1e-2, weight_decay=0.25, **options)
    network = build.build_optimizers(chosen, head, CPU, total_steps=20).network
    found = {(g["is_muon"], g["lr_scale"], g["weight_decay"], g["momentum"]) for g in network.param_groups}
    assert found == {(True, 1.0, 0.25, 0.8), (False, 0.1, 0.5, 0.8)}
    matrices = [p for group in network.param_groups if group["is_muon"] for p in group["params"]]
    assert len(matrices) == 4 * chosen.arch.options["L_layers"]


def test_frozen_weights_are_trained_by_nobody(data, tmp_path):
    from engine.checkpoints.load import load_checkpoint

    arch, frozen = {"puzzle_emb_ndim": 32}, tmp_path / "frozen"
    chosen, head = built(data, arch=arch, freeze_weights=True)
    assert [type(o) for o, _ in build.build_optimizers(chosen, head, CPU, 5).members] == [SparseSignSGD]
    assert not any(parameter.requires_grad for parameter in head.parameters()), "no average is kept of them either"
    assert pretrain(flags(data, tmp_path / "first", arch, max_steps=1)).code == 0
    words = flags(data, frozen, arch, freeze_weights=True, epochs=3, load_checkpoint=str(tmp_path / "first"), ema=True)
    ended = pretrain(words)
    assert ended.code == 0, ended.err
    before, after = (load_checkpoint(path).weights for path in (tmp_path / "first", frozen))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["model.inner.puzzle_emb.weights"]
    chosen, head = built(data, freeze_weights=True)
    with pytest.raises(ValueError, match="freeze_weights=true.*puzzle_emb_ndim"):
        build.build_optimizers(chosen, head, CPU, 5)


@pytest.mark.parametrize(
    ("changes", "steps", "passes"),
    [
        ({}, 27, 3),
        ({"max_steps": 5}, 5, 3),
        ({"max_steps": 500}, 27, 3),
        ({"eval_interval": None}, 27, 1),
        ({"epochs": 1, "eval_interval": 1, "global_batch_size": 16}, 1, 1),
    ],
)
def test_the_length_of_a_run_follows_from_epochs_and_data(data, changes, steps, passes):
    source = build.build_puzzles(config(data, **changes), CPU)
    assert (source.total_steps, source.iterations) == (steps, passes)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_can_be_entered_in_its_middle(data, workers):
    source = build.build_puzzles(config(data, dataloader_workers=workers), CPU)
    whole = [batch["inputs"] for _, batch, _ in source.data.train_items(2, 0)]
    rest = [batch["inputs"] for _, batch, _ in source.data.train_items(2, 4)]
    assert len(whole) == 9 and torch.equal(torch.stack(whole[4:]), torch.stack(rest))
    other = [batch["inputs"] for _, batch, _ in source.data.train_items(3, 0)]
    assert not torch.equal(torch.stack(whole), torch.stack(other))


def test_each_rank_reads_its_own_rows(data):
    class Rank(type(CPU)):
        pass

    parts = []
    for rank in (0, 1):
        runtime = Rank(CPU.device, rank=rank, world_size=2, use_compile=False)
        parts.append([b["inputs"] for _, b, _ in build.build_puzzles(config(data), runtime).data.train_items(1, 0)])
    whole = [b["inputs"] for _, b, _ in build.build_puzzles(config(data), CPU).data.train_items(1, 0)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(halves), batch)


def test_other_held_out_data_can_be_named(data, tmp_path):
    other = write_sudoku(tmp_path / "other", identifiers=6)
    edit_json(other / "test" / "dataset.json", sets=["hard"])
    for file in (other / "test").glob("all__*.npy"):
        file.rename(file.with_name(file.name.replace("all__", "hard__")))
    own = build.build_puzzles(config(data), CPU).data
    named = build.build_puzzles(config(data, data_paths_test=[str(other)]), CPU).data
    assert (list(own.eval_sets), list(named.eval_sets)) == (["all"], ["hard"])
    assert {name for name, _, _ in named.eval_items()} == {"hard"}
    assert sum(size for _, _, size in own.eval_items()) == 10


@pytest.mark.parametrize(
    ("trained", "held_out", "offsets"),
    [("a", "a", [0]), ("ab", "ab", [0, 5]), ("ab", "b", [5]), ("ab", "cb", [0, 5]), ("ab", "", [])],
)
def test_evaluators_count_identifiers_as_the_reader_of_their_data_does(tmp_path, trained, held_out, offsets):
    paths = {name: str(write_sudoku(tmp_path / name, identifiers=6)) for name in "abc"}
    wanted, made = [paths[name] for name in held_out], mock.Mock()
    choice = {"name": "arc@ARC", "submission_K": 3}
    chosen = config(*(paths[name] for name in trained), evaluators=[choice], data_paths_test=wanted)
    with mock.patch.object(build, "load_model_class", return_value=made):
        build.build_evaluators(chosen, wanted, "metadata")
    given = [call.kwargs for call in made.call_args_list]
    assert [kwargs["data_path"] for kwargs in given] == wanted
    assert [kwargs.get("identifier_offset", 0) for kwargs in given] == offsets
    assert all(kwargs["submission_K"] == 3 and kwargs["eval_metadata"] == "metadata" for kwargs in given)

    read = build.open_puzzles(chosen, CPU, "test", wanted, in_order=True) if wanted else []
    seen = [batch["puzzle_identifiers"] for _, batch, _ in read]
    lowest = [int(ids[ids > 0].min()) for ids in seen[::2]]  # each data set is a full and a padded batch
    assert lowest == [1 + offset for offset in offsets]


def eager_compile(function, **options):
    """What torch.compile traces, without the minutes that its code generator takes."""
    return torch_compile(function, backend="aot_eager", **options)


torch_compile = torch.compile


@pytest.mark.parametrize("arch", [{}, {"puzzle_emb_ndim": 32, "norm": "pre"}])
def test_a_compiled_run_equals_a_plain_one_and_saves_the_same_names(data, tmp_path, monkeypatch, arch):
    from engine.checkpoints.load import load_checkpoint

    monkeypatch.setattr(torch, "compile", eager_compile)
    ended = {}
    for compile_, disabled in ((False, ""), (True, ""), (True, "1")):
        monkeypatch.setenv("DISABLE_COMPILE", disabled)
        name = f"{compile_}{disabled}"
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        ended[name] = pretrain(flags(data, tmp_path / name, arch, compile=compile_, max_steps=2))
        assert ended[name].code == 0, ended[name].err
        was_compiled = compile_ and not disabled
        assert f"compile {'on' if was_compiled else 'off'}" in ended[name].err
        counters = torch._dynamo.utils.counters
        assert bool(counters["frames"]) == was_compiled and not counters["graph_break"]
    plain, compiled, disabled = (load_checkpoint(tmp_path / name).weights for name in ended)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(disabled, plain, rtol=0, atol=0)
    assert not any("_orig_mod" in name for name in compiled)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="code for a CPU is compiled by g++")
def test_generated_code_trains_like_the_plain_one(data, tmp_path):
    from engine.checkpoints.load import load_checkpoint

    for name in ("plain", "compiled"):
        ended = pretrain(flags(data, tmp_path / name, compile=name == "compiled", max_steps=3))
        assert ended.code == 0, ended.err
    plain, compiled = (load_checkpoint(tmp_path / name).weights for name in ("plain", "compiled"))
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-4)
