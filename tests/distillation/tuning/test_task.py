"""The loss that a teacher is tuned with: the next token, of its own document only, however a batch is split."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dataset.common import IGNORE_LABEL_ID, Batch
from engine.tasks.gradients import tries
from src.distillation.teachers.packed_attention import block_causal_mask, check_packable, head_of, packed_hidden
from src.distillation.tuning.lora import TunedTeacher
from src.distillation.tuning.task import TeacherTask
from tests.distillation.teacher_samples import SIZES, llama_config
from tests.tiny import CPU

LENGTHS = (11, 6, 9)  # of the documents of a row of 32
ROW = 32


def llama(**changes: Any) -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(initializer_range=0.3, **changes))
    return model.eval()


def packed_batch(rows: int = 2) -> Batch:
    """Rows of three documents and padding, laid out as PackedRows does."""
    ids = torch.randint(0, 250, (rows, ROW), generator=torch.Generator().manual_seed(1))
    labels = torch.full((rows, ROW), IGNORE_LABEL_ID)
    positions, documents = torch.zeros(rows, ROW, dtype=torch.int32), torch.full((rows, ROW), -1, dtype=torch.int32)
    start = 0
    for number, length in enumerate(LENGTHS):
        stop = start + length
        labels[:, start : stop - 1] = ids[:, start + 1 : stop]
        positions[:, start:stop] = torch.arange(length)
        documents[:, start:stop] = number
        start = stop
    return {"inputs": ids.int(), "labels": labels.int(), "positions": positions, "documents": documents}


def task_of(model: Any, micro_batches: int = 1) -> TeacherTask:
    return TeacherTask(TunedTeacher(model, False), CPU, seed=0, micro_batches=micro_batches)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_is_that_of_the_next_token_of_each_document_alone() -> None:
    model, batch = llama(), packed_batch()
    losses, start = [], 0
    for length in LENGTHS:
        ids = batch["inputs"][:, start : start + length].long()
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        losses.append(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"))
        start += length
    expected = torch.cat(losses)

    sums = task_of(model).train_step(("train", batch, 2), step=1)

    assert sums["tokens"] == len(expected)
    assert sums["loss"].item() / len(expected) == pytest.approx(expected.mean().item(), rel=1e-5)
    # What a model that shifts labels itself would make of ours is something else.
    shifted_twice = model(input_ids=batch["inputs"].long(), labels=batch["labels"].long()).loss.item()
    assert abs(shifted_twice - expected.mean().item()) > 0.05


def test_a_step_that_ran_out_of_memory_is_repeated_with_the_same_dropout() -> None:
    def after_step(micro_batches: int, failures: int) -> dict[str, torch.Tensor]:
        model = llama(attention_dropout=0.3)
        task = task_of(model, micro_batches)

        def no_memory(*_: Any) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                raise torch.OutOfMemoryError("no memory")

        model.model.norm.register_forward_hook(no_memory)
        item = ("train", packed_batch(), 2)
        for attempt in tries(task, item, 1, CPU, task.module.zero_grad, lambda line: None):
            with attempt:
                task.train_step(item, 1)
        assert task.micro_batches == 2 and not failures
        return gradients(model)

    repeated, smaller = after_step(1, 1), after_step(2, 0)
    assert repeated.keys() == smaller.keys()
    assert all(torch.equal(repeated[name], smaller[name]) for name in repeated)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    model, batch = llama(), packed_batch()
    changed = batch | {"inputs": batch["inputs"].clone()}
    changed["inputs"][:, 3] += 1  # in the first document
    with torch.no_grad():
        before, after = packed_hidden(model, batch), packed_hidden(model, changed)
    others = batch["documents"] != 0
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[~others], after[~others])


def test_positions_that_restart_are_not_enough() -> None:
    model, batch = llama(), packed_batch()
    with torch.no_grad():
        apart = packed_hidden(model, batch)
        leaking = model.model(
            input_ids=batch["inputs"].long(),
            position_ids=batch["positions"].long(),
            attention_mask=torch.ones_like(batch["inputs"]),
        ).last_hidden_state
    second = batch["documents"] == 1
    assert (apart - leaking)[second].abs().max() > 0.1


def test_positions_count_from_the_beginning_of_each_document() -> None:
    """To a Llama only distances matter; a GPT-2 sees the positions themselves."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    model, batch = GPT2LMHeadModel(GPT2Config(**sizes)).eval(), packed_batch()
    check_packable(model, seq_len=64)
    with torch.no_grad():
        alone = model.transformer(input_ids=batch["inputs"][:, LENGTHS[0] : sum(LENGTHS[:2])].long()).last_hidden_state
        packed = packed_hidden(model, batch)[:, LENGTHS[0] : sum(LENGTHS[:2])]
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_mask_leaves_no_position_with_nothing_to_see() -> None:
    mask = block_causal_mask(packed_batch()["documents"], torch.float32)
    assert mask.shape == (2, 1, ROW, ROW)
    assert (mask[:, 0].diagonal(dim1=1, dim2=2) == 0).all()
    assert (mask[0, 0].triu(1) < -1e30).masked_select(torch.ones(ROW, ROW).triu(1).bool()).all()


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_splitting_a_batch_changes_no_gradient(micro_batches: int) -> None:
    model, batch = llama(), packed_batch(rows=4)
    batch["labels"][0, :20] = IGNORE_LABEL_ID  # rows with unlike numbers of tokens
    task_of(model).train_step(("train", batch, 4), step=1)
    whole = gradients(model)
    model.zero_grad()
    task_of(model, micro_batches).train_step(("train", batch, 4), step=1)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)


def test_report_is_a_mean_over_tokens() -> None:
    report = task_of(llama()).eval_report({"loss": 20.0, "tokens": 10, "accuracy": 5, "count": 2})
    assert report["loss"] == 2.0
    assert report["perplexity"] == pytest.approx(7.389, abs=1e-3)
    assert report["accuracy"] == 0.5


def test_plain_llama_is_packable() -> None:
    check_packable(llama(), seq_len=128)
    check_packable(llama(tie_word_embeddings=True), seq_len=128)


def test_rows_beyond_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="128 positions"):
        check_packable(llama(), seq_len=256)


def test_sliding_window_is_refused() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(**(SIZES | {"sliding_window": 16})))
    with pytest.raises(ValueError, match="window of 16"):
        check_packable(model, seq_len=64)


def test_scaled_logits_are_refused() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    model = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0))
    with pytest.raises(ValueError, match="Granite"):
        check_packable(model, seq_len=64)


def test_model_without_positions_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ValueError, match="position_ids"):
        check_packable(model, seq_len=64)


def test_head_is_the_output_matrix() -> None:
    model = llama()
    assert head_of(model) is model.lm_head.weight
