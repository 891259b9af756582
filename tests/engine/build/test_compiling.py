"""Whether attention skips what a mask hides: what was asked, and what a try on this machine says."""

from dataclasses import replace

import pytest
import torch

from engine.build import compiling
from engine.build.compiling import compile_networks, why_not_in_blocks
from engine.runtime.devices import Runtime
from models.losses.puzzles import ACTLossHead
from tests.engine.text_samples import make_head, on_ranks
from tests.models.small import make
from tests.models.small_retnet import make_model
from tests.tiny import CPU

CUDA = Runtime(torch.device("cuda", 0), 0, 1, True)


@pytest.fixture
def tries(monkeypatch):
    """What a try says, and the devices it was made on."""

    class Tries(list):
        problem = ""

    made = Tries()
    monkeypatch.setattr(compiling, "why_not_in_blocks", lambda core, device: made.append(device.type) or made.problem)
    return made


def compiled(head, runtime=CUDA, **options):
    compile_networks(head, runtime, **options)
    return head.model.inner


def test_on_cuda_a_mask_is_held_in_blocks_if_the_try_goes_well(tries):
    assert compiled(make_head()).masks_in_blocks and tries == ["cuda"]


def test_plain_attention_stays_where_it_was_asked_for_where_there_is_no_cuda_and_where_there_is_no_mask(tries):
    single = make_head()
    single.model.inner.has_single_documents = True
    assert not compiled(make_head(), attention="sdpa").masks_in_blocks
    assert not compiled(make_head(), CPU).masks_in_blocks
    assert not compiled(single).masks_in_blocks
    assert not compiled(ACTLossHead(make("trm"))).masks_in_blocks
    assert not make_model().inner.has_mask
    assert not tries
    single.model.inner.config.prefix_mask = True
    assert compiled(single).masks_in_blocks, "a prompt that sees itself both ways needs a table or blocks"


def test_a_try_that_fails_leaves_plain_attention_and_says_so(tries):
    tries.problem, said = "no triton here", []
    assert not compiled(make_head(), say=said.append).masks_in_blocks
    assert len(said) == 1 and "no triton here" in said[0]
    with pytest.raises(ValueError, match="no triton here"):
        compiled(make_head(), attention="flex")


def test_all_ranks_do_the_same(monkeypatch):
    def work(runtime):
        return compiled(make_head(), replace(runtime, device=torch.device("cuda", runtime.rank))).masks_in_blocks

    monkeypatch.setattr(compiling, "why_not_in_blocks", lambda core, device: "no triton" * device.index)

    assert on_ranks(2, work) == [False, False]


def test_torch_has_no_gradient_of_it_on_a_cpu():
    assert "CPU" in why_not_in_blocks(make_head().model.inner, CPU.device)


def test_numbers_that_are_not_those_of_plain_attention_are_no_success(monkeypatch):
    monkeypatch.setattr(compiling, "build_mask", lambda in_blocks, documents, **given: given_mask(in_blocks, documents))
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    assert "differ" in why_not_in_blocks(make_head().model.inner, CPU.device)


def given_mask(in_blocks, documents):
    from models.attention import CAUSAL, build_mask

    plain = build_mask(causal=True, documents=documents, is_prompt=None, dtype=torch.float32)
    return CAUSAL if in_blocks else plain


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 64, 512])
def test_a_gpu_has_it_and_computes_what_plain_attention_does(width):
    head = make_head(hidden_size=width * 2, num_heads=2, forward_dtype="bfloat16").cuda()
    assert why_not_in_blocks(head.model.inner, torch.device("cuda", 0)) == ""
