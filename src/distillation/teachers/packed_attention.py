"""Reads packed rows with a Hugging Face causal model so that no document sees another one.

B rows, L positions, D hidden, V vocabulary. Positions that restart are not enough: without the mask below a document
attends to those before it in its row.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dataset.common import Batch

PROBE_LENGTH = 3


def block_causal_mask(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, (B, 1, L, L): 0 from a token to itself and what stands before it in its own
    document, the lowest number of `dtype` elsewhere.

    Padding sees the padding before it, so that no position is left with nothing to attend to.
    """
    length = documents.shape[1]
    may_see = documents[:, :, None] == documents[:, None, :]
    may_see &= torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    mask = torch.zeros(may_see.shape, dtype=dtype, device=documents.device)
    return mask.masked_fill_(~may_see, torch.finfo(dtype).min)[:, None]


def packed_hidden(model: Any, batch: Batch) -> Tensor:
    """The last hidden states (B, L, D) of a causal model: times `head_of(model)` they are its logits."""
    backbone = model.base_model
    output = backbone(
        input_ids=batch["inputs"].long(),
        attention_mask=block_causal_mask(batch["documents"], model.dtype),
        position_ids=batch["positions"].long(),
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def head_of(model: Any) -> Tensor:
    """The output matrix (V, D)."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight


def check_vocabulary(model: Any, vocab_size: int) -> None:
    num_ids = len(head_of(model))
    if num_ids < vocab_size:
        raise ValueError(
            f"The model knows {num_ids} ids, but the corpus was made with a tokenizer of {vocab_size}. Use a model of that "
            "tokenizer (of an init_config: its vocab_size), or preprocess the corpus with the model's (--tokenizer)."
        )


def check_packable(model: Any, seq_len: int) -> None:
    """Refuse a model that `packed_hidden` and `head_of` would get wrong, before any time is spent on it."""
    config = model.config
    name = f"{type(model).__name__} ({config.model_type})"
    accepted = inspect.signature(model.base_model.forward).parameters
    missing = [key for key in ("attention_mask", "position_ids") if key not in accepted]
    if missing:
        raise ValueError(
            f"{name} takes no {' and no '.join(missing)}, so documents that share a row could see each other. "
            "Use a transformer with rotary positions as the teacher, such as a Llama or Qwen."
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < seq_len:
        raise ValueError(
            f"{name} attends over a window of {window} tokens, but rows have {seq_len}: the mask of packed rows would "
            f"widen it. Preprocess with --max-seq-length {window} or less, or use another teacher."
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and limit < seq_len:
        raise ValueError(f"{name} knows {limit} positions, but rows have {seq_len}: preprocess into shorter rows.")
    _check_head(model, name)


@torch.no_grad()
def _check_head(model: Any, name: str) -> None:
    """Some models scale, cap or shift the product of hidden states and head; then it is not their logits."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{name} has no plain output matrix, but {type(head).__name__}. Use another teacher.")
    ids = torch.arange(PROBE_LENGTH, device=head.weight.device)[None]
    probe = {"inputs": ids, "positions": ids, "documents": torch.zeros_like(ids)}
    was_training = model.training
    model.eval()
    expected = model(input_ids=ids, use_cache=False).logits.float()
    found = (packed_hidden(model, probe) @ head_of(model).T).float()
    model.train(was_training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
        raise ValueError(
            f"The logits of {name} are not its hidden states times its output matrix (they differ by "
            f"{float((found - expected).abs().max()):.3g}): it scales, caps or shifts them. Use another teacher."
        )
