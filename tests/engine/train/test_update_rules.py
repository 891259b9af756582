"""AdamATan2 and sign-SGD: the reference's numbers, and what a step takes."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from engine.runtime import devices
from engine.train.update_rules import AdamATan2, SparseSignSGD
from models.sparse_embedding import CastedSparseEmbedding
from tests.live_bytes import LiveBytes
from tests.models.parity import arrays


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_adam_atan2_equals_the_reference(dtype, atol):
    data = arrays("optim.npz")
    parameters = {n: torch.nn.Parameter(torch.from_numpy(data[f"adam_atan2/param0.{n}"]).to(dtype)) for n in "wb"}
    optimizer = AdamATan2(
        parameters.values(), betas=tuple(data["adam_atan2/betas"]), weight_decay=float(data["adam_atan2/weight_decay"])
    )
    for t, lr in enumerate(data["adam_atan2/lr_per_step"], start=1):
        optimizer.param_groups[0]["lr"] = float(lr)
        for name, parameter in parameters.items():
            key = f"adam_atan2/grad{t}.{name}"  # at step 3 `b` has none
            parameter.grad = torch.from_numpy(data[key]).to(dtype) if key in data else None
        optimizer.step()
        for name, parameter in parameters.items():
            for field, value in (("param", parameter.detach()), *optimizer.state[parameter].items()):
                if field != "step":
                    np.testing.assert_allclose(value, data[f"adam_atan2/{field}{t}.{name}"], rtol=0, atol=atol)


def test_sign_sgd_equals_the_reference():
    data = arrays("optim.npz")
    table = CastedSparseEmbedding(6, 4, 0.0, torch.float32).train()
    table.weights.copy_(torch.from_numpy(data["sign_sgd/weights0"]))
    optimizer = SparseSignSGD(table, lr=0.0, weight_decay=float(data["sign_sgd/weight_decay"]))
    for t, lr in enumerate(data["sign_sgd/lr_per_step"], start=1):
        out = table(torch.from_numpy(data[f"sign_sgd/ids{t}"]))
        np.testing.assert_array_equal(out.detach(), data[f"sign_sgd/out{t}"])
        table.local_weights.grad = torch.from_numpy(data[f"sign_sgd/grad{t}"])
        optimizer.param_groups[0]["lr"] = float(lr)
        optimizer.step()
        np.testing.assert_allclose(table.weights, data[f"sign_sgd/weights{t}"], rtol=0, atol=2e-6)


def test_split_batches_make_the_same_sign_step_as_one():
    tables = [CastedSparseEmbedding(5, 3, 0.0, torch.float32).train() for _ in range(2)]
    ids, grads = torch.tensor([1, 3, 1, 4]), torch.randn(4, 3)
    for table, parts in zip(tables, ([slice(0, 4)], [slice(0, 2), slice(2, 4)]), strict=True):
        for part in parts:
            table(ids[part])
            table.local_weights.grad = grads[part]
        SparseSignSGD(table, lr=0.1, weight_decay=0.0).step()
    assert torch.equal(tables[0].weights, tables[1].weights)
    assert tables[0].weights[[1, 3, 4]].abs().sum() > 0


def test_optimizer_state_survives_saving():
    def train(parameter, optimizer, steps):
        for _ in range(steps):
            parameter.grad = parameter.detach() * 2 + 1
            optimizer.step()

    whole = torch.nn.Parameter(torch.ones(3))
    train(whole, AdamATan2([whole], lr=0.1), 4)
    first = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamATan2([first], lr=0.1)
    train(first, optimizer, 2)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = AdamATan2([second], lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, 2)
    assert torch.equal(whole, second)


def adam_with_gradients(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    return parameters, AdamATan2(parameters, lr=0.1)


def step_one_by_one(p, state, lr, betas, weight_decay):
    """The step as it is written on paper."""
    state["step"] += 1
    p.mul_(1 - lr * weight_decay)
    state["exp_avg"].lerp_(p.grad, 1 - betas[0])
    state["exp_avg_sq"].mul_(betas[1]).addcmul_(p.grad, p.grad, value=1 - betas[1])
    size = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - betas[1] ** state["step"]))
    p.add_(torch.atan2(state["exp_avg"], size).mul_(-lr / (1 - betas[0] ** state["step"])))


def test_a_step_of_many_weights_is_the_step_of_each(monkeypatch):
    monkeypatch.setattr(devices, "BUCKET_BYTES", 400)
    shapes = [(7, 9), (5,), (11, 3), (2, 2, 2), (40, 40), ()]
    parameters, optimizer = adam_with_gradients(shapes)
    expected = [p.detach().clone() for p in parameters]
    states = [{"step": 0, "exp_avg": torch.zeros(s), "exp_avg_sq": torch.zeros(s)} for s in shapes]
    for _ in range(3):
        optimizer.step()
        for p, wanted, state in zip(parameters, expected, states, strict=True):
            wanted.grad = p.grad
            step_one_by_one(wanted, state, 0.1, (0.9, 0.95), 0.1)
    for p, wanted, state in zip(parameters, expected, states, strict=True):
        assert torch.equal(p, wanted) and torch.equal(optimizer.state[p]["exp_avg_sq"], state["exp_avg_sq"])


def test_a_step_needs_no_more_memory_than_one_bucket(monkeypatch):
    monkeypatch.setattr(devices, "BUCKET_BYTES", 4 * 1000)
    _, optimizer = adam_with_gradients([(10, 50)] * 20)
    optimizer.step()
    with LiveBytes() as memory:
        optimizer.step()
    assert memory.most == 4 * 1000


def test_more_weights_take_no_more_calls_but_for_the_arc_tangent():
    calls = []
    for number in (3, 30):
        _, optimizer = adam_with_gradients([(4, 5)] * number)
        optimizer.step()
        with LiveBytes() as memory:
            optimizer.step()
        assert memory.names.count("atan2") == number
        calls.append(Counter(name for name in memory.names if "_foreach_" in name))
    assert calls[0] == calls[1] and calls[0].total() == 8
