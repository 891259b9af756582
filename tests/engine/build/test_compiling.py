"""Whether attention skips what a mask hides: what was asked, and what a try on this machine says."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import flex_attention

from engine.build import compiling
from engine.build.compiling import check_attention, compile_networks, why_not_in_blocks
from engine.runtime.devices import Runtime
from models import core as core_file
from models.attention import CAUSAL, build_mask
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


def test_an_older_gpu_is_not_tried(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5" in why_not_in_blocks(make_head().model.inner, CUDA.device)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("prefix_mask", [False, True])
def test_attention_and_mask_of_the_run_are_what_is_tried(prefix_mask, monkeypatch):
    """Of rows shorter than 128 positions torch makes another kernel, of prompts other code than of documents, and queries
    and keys are slices of one tensor."""
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *states: None)
    made = []
    monkeypatch.setattr(core_file, "build_mask", lambda **given: made.append(given) or build_mask(**given))
    options = {"puzzle_emb_ndim": 32, "puzzle_emb_len": 3, "num_puzzle_identifiers": 1, "prefix_mask": prefix_mask}
    core = make_head(seq_len=40, **options).model.inner
    assert why_not_in_blocks(core, CPU.device) == ""
    assert [given["in_blocks"] for given in made] == [False, True] and not core.masks_in_blocks
    assert made[1]["documents"].shape[1] == 40 and made[1]["prefix_len"] == 3
    assert (made[1]["is_prompt"] is not None) == prefix_mask


def test_code_that_is_not_compiled_has_no_masks_of_blocks():
    check_attention("auto", CPU)
    check_attention("flex", CUDA)
    with pytest.raises(ValueError, match="attention=flex"):
        check_attention("flex", CPU)


def test_numbers_that_are_not_those_of_plain_attention_are_no_success(monkeypatch):
    def without_documents(**given):
        return CAUSAL if given["in_blocks"] else build_mask(**given)

    monkeypatch.setattr(core_file, "build_mask", without_documents)
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    assert "differ" in why_not_in_blocks(make_head().model.inner, CPU.device)


@pytest.mark.gpu
@pytest.mark.parametrize("prefix_mask", [False, True])
@pytest.mark.parametrize("length", [40, 128, 200])
@pytest.mark.parametrize("width", [32, 64, 512])
def test_a_gpu_has_it_and_computes_what_plain_attention_does(width, length, prefix_mask):
    options = {"hidden_size": width * 2, "num_heads": 2, "seq_len": length, "prefix_mask": prefix_mask}
    head = make_head(**options, forward_dtype="bfloat16").cuda()
    assert why_not_in_blocks(head.model.inner, torch.device("cuda", 0)) == ""
