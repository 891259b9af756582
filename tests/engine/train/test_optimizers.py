import numpy as np
import pytest
import torch

from engine.train.optimizers import AdamATan2, SparseSignSGD, learning_rate, network_optimizer
from models.sparse_embedding import CastedSparseEmbedding
from tests.models.parity import arrays, description


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


def test_learning_rates_equal_the_reference():
    for s in description("lr.json")["schedules"]:
        ours = [
            learning_rate(
                k,
                base=s["base_lr"],
                warmup_steps=s["num_warmup_steps"],
                total_steps=s["num_training_steps"],
                min_ratio=s["min_ratio"],
                num_cycles=s["num_cycles"],
            )
            for k in s["steps"]
        ]
        np.testing.assert_allclose(ours, s["lr"], rtol=1e-12, atol=1e-18)


def test_the_compiled_optimizer_is_refused_without_cuda():
    with pytest.raises(ValueError, match=r"needs a CUDA device. Use optimizer=adam_atan2"):
        network_optimizer(
            "adam_atan2_cuda", [torch.nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.9), weight_decay=0.0
        )


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
