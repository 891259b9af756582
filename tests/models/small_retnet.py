"""A small RetNet and ids for it."""

import torch

from models.retnet.model import RetNet

VOCAB, LENGTH = 40, 24


def make_model(**options) -> RetNet:
    torch.manual_seed(1)
    config = {
        **{"seq_len": LENGTH, "vocab_size": VOCAB, "hidden_size": 32, "num_heads": 2, "expansion": 1},
        **{"H_layers": 2, "forward_dtype": "float32", "tie_embeddings": True},
    }
    return RetNet(config | options)


def make_ids(rows=2, length=LENGTH, seed=0, vocab=VOCAB):
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def hidden_of(model, ids, **batch):
    core = model.inner
    x, context = core.embed({"inputs": ids}), core.context({"inputs": ids, **batch})
    return core.step(core.initial_latents(x), x, context)[1][-1]


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
