"""The chunked loss: the plain loss number by number and gradient by gradient, without tokens x vocabulary."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.losses import chunked as chunked_loss
from models.losses.chunked import chunked_cross_entropy, dense_cross_entropy
from models.losses.puzzles import LOSSES

TOKENS, WIDTH, VOCAB = 37, 16, 211
both_laws = pytest.mark.parametrize("law", LOSSES)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned, inside of autograd functions too."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


def problem(tokens: int = TOKENS, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(3)
    hidden = (2 * torch.randn(tokens, WIDTH, generator=generator)).to(dtype).requires_grad_()
    head = torch.randn(VOCAB, WIDTH, generator=generator).requires_grad_()
    labels = torch.randint(VOCAB, (tokens,), generator=generator)
    return hidden, head, labels, torch.rand(tokens, generator=generator)


def chunked(hidden, head, labels, weights, law):
    return chunked_cross_entropy(hidden, head, labels, weights, is_stablemax=law == "stablemax_cross_entropy")


def dense(hidden, head, labels, weights, law):
    return dense_cross_entropy(hidden @ head.to(hidden.dtype).T, labels, weights, LOSSES[law])


def outcome(score, law, tokens: int = TOKENS, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    hidden, head, labels, weights = problem(tokens, dtype)
    loss, scores = score(hidden, head, labels, weights, law)
    (3 * loss).backward()  # what comes back need not be 1
    return {"loss": loss, "losses": scores.losses, "hidden": hidden.grad, "head": head.grad, "preds": scores.preds}


@both_laws
@pytest.mark.parametrize("tokens_of_chunk", [1, 2, 5, 36, 37, 1000])
def test_the_chunked_loss_is_the_plain_loss(law, tokens_of_chunk, monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", tokens_of_chunk * VOCAB)
    found, expected = outcome(chunked, law), outcome(dense, law)
    assert torch.equal(found.pop("preds"), expected.pop("preds"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)
    assert expected["head"].abs().max() > 0.1, "gradients that are nothing agree with anything"


@both_laws
def test_half_precision_states_keep_a_full_precision_head(law):
    found, expected = (outcome(score, law, dtype=torch.bfloat16) for score in (chunked, dense))
    assert found["hidden"].dtype == torch.bfloat16 and found["head"].dtype == found["losses"].dtype == torch.float32
    for name in ("loss", "head"):
        torch.testing.assert_close(found[name], expected[name], rtol=3e-2, atol=3e-2)


@both_laws
@pytest.mark.parametrize("score", [chunked, dense])
def test_without_a_supervised_token_the_loss_is_zero_and_so_are_the_gradients(law, score):
    found = outcome(score, law, tokens=0)
    assert found["loss"].item() == 0 and found["losses"].shape == found["preds"].shape == (0,)
    assert found["head"].shape == (VOCAB, WIDTH) and not found["head"].any()


@both_laws
def test_no_tensor_of_tokens_by_vocabulary_ever_exists(law, monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", 2 * VOCAB)
    sizes = {}
    for score in (chunked, dense):
        with LargestTensor() as largest:
            outcome(score, law)
        sizes[score] = largest.numel
    assert sizes[chunked] == VOCAB * WIDTH, "nothing is larger than the head itself"
    assert sizes[dense] == TOKENS * VOCAB, "the plain way does hold them, so the measure sees it"


def test_evaluation_keeps_no_gradients():
    hidden, head, labels, weights = problem()
    with torch.no_grad(), LargestTensor() as largest:
        loss, _ = chunked(hidden, head, labels, weights, "softmax_cross_entropy")
    assert not loss.requires_grad
    assert largest.numel == TOKENS * VOCAB, "one chunk holds all of so few tokens, and no gradient of the head is made"


@both_laws
def test_a_frozen_head_gets_no_gradient_and_the_states_get_the_same(law):
    expected = outcome(chunked, law)["hidden"]
    hidden, head, labels, weights = problem()
    loss, _ = chunked(hidden, head.requires_grad_(False), labels, weights, law)
    assert [saved is None for saved in loss.grad_fn.saved_tensors] == [False, True]
    (3 * loss).backward()
    assert torch.equal(hidden.grad, expected)
    assert head.grad is None


@both_laws
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_compiled_graph_scores_every_number_of_tokens(law, dtype, monkeypatch):
    made, plainly = [], torch.compile

    def counted(graph, inputs):
        made.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **more: plainly(f, backend=counted, fullgraph=True, **more))
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", 16 * VOCAB)
    torch._dynamo.reset()
    score = chunked_loss.CompiledScore()

    def compiled(hidden, head, labels, weights, law):
        is_stablemax = law == "stablemax_cross_entropy"
        return chunked_cross_entropy(hidden, head, labels, weights, is_stablemax=is_stablemax, score=score)

    for tokens in (37, 1, 16, 5, 0):
        found, expected = (outcome(way, law, tokens, dtype) for way in (compiled, chunked))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-2)
    assert len(made) == 1


@both_laws
@pytest.mark.slow
def test_generated_code_keeps_no_wide_table_of_logits(law):
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    rows, vocab = 64, 4096
    logits, labels = torch.randn(rows, vocab).bfloat16(), torch.arange(rows)
    is_stablemax = law == "stablemax_cross_entropy"
    compiled = torch.compile(chunked_loss.scored_, dynamic=False)
    found, code = run_and_get_code(compiled, logits, labels, torch.ones(rows), is_stablemax)
    tables = [line for text in code for line in text.splitlines() if f"({rows}, {vocab})" in line and "empty_" in line]
    assert tables and all("bfloat16" in line for line in tables), tables
    for one, other in zip(
        found, chunked_loss.scored_(logits.clone(), labels, torch.ones(rows), is_stablemax), strict=True
    ):
        torch.testing.assert_close(one.float(), other.float(), rtol=1e-2, atol=1e-4)
