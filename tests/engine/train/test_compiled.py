"""Compiled runs: how many graphs are made over a whole run, and that they compute what plain code does."""

import pytest
import torch
from torch.nn.attention import flex_attention

from engine.build import compiling
from engine.build.compiling import compile_networks
from engine.checkpoints.load import load_checkpoint
from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions
from tests.engine.text_samples import make_batch, make_head
from tests.models.small import ARCHS
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import CPU, flags, pretrain, write_sudoku

torch_compile = torch.compile
CURRICULUM = "[{until:0.3,H_cycles:1,L_cycles:1,halt_max_steps:1},{until:0.6,L_cycles:1,halt_max_steps:2}]"
LAST = {"supervise": "last", "detach_between_steps": False}
SCHEDULES = {
    "sampled depth": {"halt_policy": "sampled", "halt_max_steps": 6},
    "1->all": {"grad_cycles": "'1->all'", "halt_max_steps": 3},
    "2->all, cycles": {"grad_cycles": "'2->all'", "H_cycles": 3, "L_cycles": 2, "supervise": "cycle"},
    "1->all, last": LAST | {"grad_cycles": "'1->all'", "L_cycles": 2, "halt_policy": "fixed", "halt_max_steps": 3},
    "half, attached": {"grad_cycles": "half", "detach_between_steps": False, "forward_dtype": "bfloat16"},
    "curriculum": {"depth_curriculum": CURRICULUM, "H_cycles": 2, "L_cycles": 2, "halt_max_steps": 4},
    "input at the start": {"injection": "start", "latent_init": "embedding", "norm": "pre", "prefix_mask": True},
    "persistent": {"recursion": "carry", "halt_policy": "learned", "halt_exploration_prob": 0.5, "halt_max_steps": 4},
    "two networks": {"name": ARCHS["hrm"], "H_layers": 1, "grad_cycles": "'1->all'"},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory):
    return write_sudoku(tmp_path_factory.mktemp("puzzles"), identifiers=6)


@pytest.fixture
def graphs(monkeypatch):
    """Whether each graph that was made carries gradient. Whatever would fall back to plain code is an error."""
    made = []

    def counted(graph, inputs):
        made.append(torch.is_grad_enabled())
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **more: torch_compile(f, backend=counted, fullgraph=True, **more))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield made
    torch._dynamo.reset()


def assert_trained_alike(plain, compiled):
    one, other = (load_checkpoint(path).weights for path in (plain, compiled))
    torch.testing.assert_close(other, one, rtol=0, atol=1e-5 if plain.name != "bfloat16" else 1e-2)
    assert not any("_orig_mod" in name for name in other)


def within(made, networks=1):
    """Two graphs of training, with gradient and without, and one of evaluation, for each kind of network."""
    assert 0 < made.count(True) <= networks and made.count(False) <= 2 * networks


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_on_text_makes_three_graphs_at_most(schedule, text, tmp_path, graphs):
    arch = SCHEDULES[schedule]
    more = {"eval_interval": 1, "epochs": 3, "gradient_accumulation_steps": 1 if schedule == "persistent" else 2}
    name = arch.get("forward_dtype", "float32")
    for place, compile_ in ((tmp_path / name, False), (tmp_path / "compiled", True)):
        ended = train_text(text_flags(text, place, arch, compile=compile_, **more))
        assert ended.code == 0, ended.err
        assert bool(graphs) == compile_
    within(graphs)
    assert_trained_alike(tmp_path / name, tmp_path / "compiled")


@pytest.mark.parametrize("options", [{}, {"prefix_mask": True, "halt_policy": "sampled", "halt_max_steps": 4}])
@pytest.mark.filterwarnings("ignore:.*flex_attention:UserWarning")
def test_masks_in_blocks_make_no_more_graphs(options, text, tmp_path, graphs, monkeypatch):
    """By FlexAttention's definition, of which torch itself takes no gradient on a CPU."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *states: None)
    monkeypatch.setattr(compiling, "why_not_in_blocks", lambda core, device: "")
    for place, attention in ((tmp_path / "plain", "sdpa"), (tmp_path / "blocks", "flex")):
        more = {"compile": True, "attention": attention, "eval_interval": 1, "epochs": 2}
        ended = train_text(text_flags(text, place, options, **more))
        assert ended.code == 0, ended.err
        within(graphs)
        graphs.clear()
    assert_trained_alike(tmp_path / "plain", tmp_path / "blocks")


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("trm", {"mlp_t": True}),
        ("trm", {"chains": 3}),
        ("trm", {"chains": 2, "grad_cycles": "all", "H_cycles": 2}),
        ("trm_singlez", {"mlp_t": True, "norm": "pre"}),
        ("trm_hier6", {"grad_cycles": "half"}),
        ("hrm", {"no_ACT_continue": False, "forward_dtype": "bfloat16"}),
        ("transformers_baseline", {"compute_target_q": True}),
    ],
)
def test_a_run_on_puzzles_makes_three_graphs_at_most(arch, options, puzzles, tmp_path, graphs):
    asked = {"name": ARCHS[arch], "H_layers": 1, "puzzle_emb_ndim": 32} | options
    more = {"epochs": 3, "eval_interval": 1, "eval.rollouts": 2, "eval.noise": 0.3}
    ended = pretrain(flags(puzzles, tmp_path / "run", asked, compile=True, **more))
    assert ended.code == 0, ended.err
    within(graphs)


def test_two_networks_that_differ_have_graphs_of_their_own(puzzles, tmp_path, graphs):
    arch = {"name": ARCHS["hrm"], "H_layers": 2, "L_layers": 1}
    ended = pretrain(flags(puzzles, tmp_path / "run", arch, compile=True, epochs=3, eval_interval=1))
    assert ended.code == 0, ended.err
    within(graphs, networks=2)


@pytest.mark.parametrize("again", [False, True])
def test_a_network_that_reads_once_makes_three_graphs_at_most(again, text, tmp_path, graphs):
    arch = {"name": "retnet@RetNet", "H_layers": 2, "L_layers": 0, "halt_max_steps": 1, "norm": "pre"}
    arch |= {"latent_init": "embedding", "halt_policy": "fixed", "gradient_checkpointing": again}
    for place, compile_ in ((tmp_path / "plain", False), (tmp_path / "compiled", True)):
        ended = train_text(text_flags(text, place, arch, compile=compile_, epochs=3, eval_interval=1))
        assert ended.code == 0, ended.err
    within(graphs)
    assert_trained_alike(tmp_path / "plain", tmp_path / "compiled")


def test_frozen_weights_make_three_graphs_at_most(puzzles, tmp_path, graphs):
    arch = {"puzzle_emb_ndim": 32, "grad_cycles": "'1->all'"}
    assert pretrain(flags(puzzles, tmp_path / "first", arch, max_steps=1)).code == 0
    more = {"freeze_weights": True, "load_checkpoint": str(tmp_path / "first"), "epochs": 6, "eval_interval": 2}
    ended = pretrain(flags(puzzles, tmp_path / "run", arch, compile=True, **more))
    assert ended.code == 0, ended.err
    within(graphs)


def test_decoding_does_not_meet_the_compiled_networks(graphs):
    head = make_head("trm")
    compile_networks(head, CPU)
    for mode in ("exact", "recompute"):
        for tokens in Decoding(head.model, [[3, 4], [5, 6, 7]], DecodeOptions(depth=2, mode=mode), max_new_tokens=4):
            assert tokens
    assert not graphs
    with torch.no_grad():
        list(head.model.inner.unroll(make_batch(2, packing=True), 2))
    assert graphs == [False]
