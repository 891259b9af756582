"""Who may look at whom, said twice: by the mask, and by a plain loop over all pairs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from models.attention import CAUSAL, FULL, AttentionMask, attend, build_mask


def may_look(i: int, j: int, *, causal: bool, prefix: int, documents, is_prompt) -> bool:
    """Whether position i sees position j; positions below `prefix` stand before the tokens."""
    if j > i and causal and (i < prefix or j < prefix):
        return False
    if i < prefix or j < prefix:
        return True
    a, b = i - prefix, j - prefix
    if documents is not None and documents[a] != documents[b]:
        return False
    both_prompt = is_prompt is not None and is_prompt[a] and is_prompt[b]
    return j <= i or not causal or both_prompt


rows = st.integers(1, 6).flatmap(
    lambda length: st.tuples(
        st.none() | st.lists(st.integers(-1, 2), min_size=length, max_size=length).map(sorted),
        st.none() | st.lists(st.booleans(), min_size=length, max_size=length),
    )
)


@given(row=rows, causal=st.booleans(), prefix=st.integers(0, 2))
def test_the_mask_says_what_the_loop_says(row, causal, prefix):
    documents, is_prompt = row
    mask = build_mask(
        causal=causal,
        documents=None if documents is None else torch.tensor([documents, documents[::-1]]),
        is_prompt=None if is_prompt is None else torch.tensor([is_prompt, is_prompt]),
        dtype=torch.float32,
        prefix_len=prefix,
    )
    if documents is None and is_prompt is None:
        assert mask == (CAUSAL if causal else FULL)
        return
    length = prefix + len(documents if documents is not None else is_prompt)
    assert mask.bias.shape == (2, 1, length, length) and not mask.is_causal
    for number, of_row in enumerate((documents, None if documents is None else documents[::-1])):
        for i in range(length):
            for j in range(length):
                expected = may_look(i, j, causal=causal, prefix=prefix, documents=of_row, is_prompt=is_prompt)
                assert mask.bias[number, 0, i, j] == (0.0 if expected else -math.inf), (i, j)


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention by its definition, which torch lets nobody take a gradient of on a CPU."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *states: None)


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("marks", ["documents", "prompts", "both"])
@pytest.mark.parametrize("length", [40, 128, 200])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_mask_of_blocks_says_what_the_table_does(length, marks, prefix, flex_on_cpu):
    generator = torch.Generator().manual_seed(length)
    documents = torch.randint(0, 4, (2, length), generator=generator).sort(1).values.int()
    documents[:, -7:] = -1
    is_prompt = torch.rand(2, length, generator=generator) < 0.4
    given = {
        "documents": None if marks == "prompts" else documents,
        "is_prompt": None if marks == "documents" else is_prompt,
    }
    states = torch.randn(3, 2, prefix + length, 2, 16, generator=generator)
    found = []
    for in_blocks in (False, True):
        mask = build_mask(causal=True, dtype=torch.float32, prefix_len=prefix, in_blocks=in_blocks, **given)
        assert (mask.bias is None) == in_blocks
        qkv = [part.clone().requires_grad_() for part in states]
        out = attend(*qkv, mask)
        found.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def plain(q, k, v, allowed):
    """Attention by its definition, in float64."""
    q, k, v = (states.double().transpose(1, 2) for states in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~allowed, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


MASKS = {
    "full": (FULL, torch.ones(5, 5, dtype=torch.bool)),
    "causal": (CAUSAL, torch.ones(5, 5, dtype=torch.bool).tril()),
    "packed": (
        build_mask(causal=True, documents=torch.tensor([[0, 0, 1, 1, -1]]), is_prompt=None, dtype=torch.float32),
        torch.block_diag(*(torch.ones(size, size).tril() for size in (2, 2, 1))).bool(),
    ),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
def test_attention_is_what_its_definition_says(name, dtype, atol):
    mask, allowed = MASKS[name]
    if mask.bias is not None:
        mask = AttentionMask(bias=mask.bias.to(dtype))
    q, k, v = (torch.randn(3, 5, 2, 8).to(dtype).requires_grad_() for _ in range(3))
    out = attend(q, k, v, mask)
    assert out.shape == (3, 5, 2, 8) and out.dtype == dtype
    expected = plain(q, k, v, allowed)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)
    weights = torch.randn_like(expected)
    found = torch.autograd.grad((out.double() * weights).sum(), (q, k, v))
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=4 * atol)


def test_padding_never_makes_nan():
    mask = build_mask(causal=True, documents=torch.full((1, 5), -1), is_prompt=None, dtype=torch.float32)
    q = torch.randn(1, 5, 2, 8)
    assert attend(q, q, q, mask).isfinite().all()


@pytest.mark.parametrize("length", [5, 8])
def test_rows_of_the_table_begin_where_kernels_read_them_without_a_copy(length):
    documents = torch.arange(length)[None] // 3
    bias = build_mask(causal=True, documents=documents, is_prompt=None, dtype=torch.bfloat16).bias
    assert bias.shape == (1, 1, length, length) and all(stride % 8 == 0 for stride in bias.stride()[:-1])
    q = torch.randn(1, length, 2, 8)
    wide = AttentionMask(bias=bias.float().contiguous())
    torch.testing.assert_close(attend(q, q, q, AttentionMask(bias=bias)), attend(q, q, q, wide), rtol=0, atol=1e-6)
