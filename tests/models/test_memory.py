"""The estimate of a training step's memory beside what it holds when it is carried out."""

import pytest
import torch

from models import memory
from models.losses import chunked
from models.losses.text import Supervision, TextLossHead
from models.memory import training_bytes
from tests.live_bytes import LiveBytes
from tests.models.small import make
from tests.models.small_retnet import make_model

STEPS, LENGTH = 3, 64
OPTIONS = {
    **{"hidden_size": 64, "seq_len": LENGTH, "vocab_size": 50, "causal": True, "norm": "pre"},
    **{"recursion": "unrolled", "halt_policy": "fixed"},
}


def most_bytes(head, rows, num_steps):
    documents = (torch.arange(LENGTH) // 32).expand(rows, -1)
    batch = {
        "inputs": torch.randint(0, 50, (rows, LENGTH), dtype=torch.int32),
        "labels": torch.randint(0, 50, (rows, LENGTH), dtype=torch.int32),
        "documents": documents,
        "positions": torch.arange(LENGTH).expand(rows, -1),
    }
    at = Supervision.of(batch)
    weights = at.weights("token", torch.tensor(float(len(at.places))))
    with LiveBytes() as held:
        head.train_on(batch, at, weights, num_steps)
    return held.most


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("trm", {}),
        ("trm", {"norm": "post", "L_layers": 2, "expansion": 4}),
        ("trm", {"detach_between_steps": False}),
        ("trm", {"supervise": "cycle", "grad_cycles": "all"}),
        ("trm", {"supervise": "last", "detach_between_steps": False, "grad_cycles": "half"}),
        ("trm", {"vocab_size": 4000, "chunked": False}),
        ("hrm", {}),
        ("trm_singlez", {}),
        ("trm_hier6", {}),
        ("transformers_baseline", {}),
        ("retnet", {}),
    ],
)
def test_bytes_of_a_position_are_those_that_a_step_holds(arch, options, monkeypatch):
    for module in (chunked, memory):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 50 * 16)
    options = dict(options)
    is_chunked = options.pop("chunked", True)
    if arch == "retnet":
        model = make_model(seq_len=LENGTH, vocab_size=50)
    else:
        model = make(arch, **(OPTIONS | options))
    head, steps = TextLossHead(model, chunked=is_chunked), 1 if arch == "retnet" else STEPS
    most_bytes(head, 1, steps)  # the gradients exist from here on
    few, many = most_bytes(head, 2, steps), most_bytes(head, 10, steps)
    found = (many - few) / (8 * LENGTH)
    assert 0.95 <= training_bytes(model.inner, steps, is_chunked).each_position / found <= 1.5
