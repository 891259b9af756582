"""The RetNet: as large as it is called, causal, blind across documents, and trained and judged as any text model."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from engine.config.registry import load_model_class
from engine.tasks.text import TextTask, text_report
from models.layers import weights_cast_once
from models.losses.text import Supervision, TextLossHead
from models.retnet.config import PRESETS, RetNetConfig, preset
from models.retnet.model import RetNet
from tests.engine.text_samples import CPU, gradients, make_batch, make_reader, make_store
from tests.models.small_retnet import LENGTH, VOCAB, close, hidden_of, make_ids, make_model

ARCHS = Path(__file__).parents[3] / "config" / "arch"
LLAMA_3 = 128256


def trained(model, batch, **options):
    """Sums and gradients of one step of the text loss."""
    head = TextLossHead(model, **options)
    at = Supervision.of(batch)
    head.zero_grad(set_to_none=True)
    return head.train_on(batch, at, at.weights("token", torch.tensor(float(len(at.places)))), 1), gradients(model)


# --- sizes and options ---


@pytest.mark.parametrize(("variant", "named"), [("350M", 350e6), ("500M", 500e6)])
def test_a_preset_has_the_parameters_it_is_named_for(variant, named):
    with torch.device("meta"):
        model = RetNet(preset(variant) | {"vocab_size": LLAMA_3, "seq_len": 8192})
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(named, rel=0.03)


@pytest.mark.parametrize("variant", PRESETS)
def test_the_arch_files_and_the_presets_are_the_same_models(variant):
    files = ["retnet_tiny", f"retnet_{variant.lower()}"]
    options = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.load(ARCHS / f"{name}.yaml") for name in files)))
    assert isinstance(options, dict) and load_model_class(options["name"]) is RetNet
    facts = {"vocab_size": VOCAB, "seq_len": LENGTH}
    options = {key: value for key, value in options.items() if key not in ("name", "loss", "defaults")}
    assert RetNetConfig(**options, **facts) == RetNetConfig(**preset(variant), **facts)


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match="1B"):
        preset("1B")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"causal": False}, "causal=False: a RetNet reads its text once, in order. Set causal=True"),
        ({"halt_max_steps": 4}, "halt_max_steps=4.*Set halt_max_steps=1"),
        ({"prefix_mask": True}, "prefix_mask=True"),
        ({"pos_encodings": "learned"}, "pos_encodings='learned'"),
        ({"H_layers": 0}, "set H_layers to 1 or more"),
        ({"num_heads": 3}, "hidden_size=32 is not a multiple of num_heads=3"),
        ({"chunk_sise": 3}, "chunk_sise"),
    ],
)
def test_what_a_retnet_cannot_honour_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make_model(**options)


# --- the network ---


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("vocab", "width", "layers"), [(256, 64, 2), (4000, 512, 6)])
def test_the_first_loss_is_that_of_a_guess(vocab, width, layers, tied):
    model = make_model(
        vocab_size=vocab, hidden_size=width, num_heads=4, H_layers=layers, expansion=4, tie_embeddings=tied
    )
    ids = make_ids(2, 129, vocab=vocab)
    sums, _ = trained(model, {"inputs": ids[:, :-1], "labels": ids[:, 1:]})
    assert (sums["token_loss"] / sums["tokens"]).item() == pytest.approx(math.log(vocab), rel=0.02)


def test_no_position_sees_what_comes_after_it():
    model, ids = make_model(chunk_size=8), make_ids()
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % VOCAB
    before, after = hidden_of(model, ids), hidden_of(model, changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert ((before[:, 10:] - after[:, 10:]).abs().amax((0, 2)) > 1e-5).all()


def test_gradients_reach_every_weight():
    model, ids = make_model(tie_embeddings=False, chunk_size=8), make_ids(4, LENGTH + 1)
    _, grads = trained(model, {"inputs": ids[:, :-1], "labels": ids[:, 1:]})
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(wanted) == 2 * 6 + 3
    assert wanted == {name for name, grad in grads.items() if grad.abs().max() > 0}
    assert {name.split(".")[1] for name, _ in model.named_parameters()} - {n.split(".")[1] for n in wanted} == {
        "q_head"
    }


@pytest.mark.parametrize("options", [{"chunk_size": 1}, {"chunk_size": 7}, {"gradient_checkpointing": True}])
def test_neither_chunks_nor_checkpointing_change_a_gradient(options):
    batch = make_batch(12, packing=True)
    (sums, grads), (other_sums, other_grads) = (trained(make_model(**opts), batch) for opts in ({}, options))
    assert sums["token_loss"].item() == pytest.approx(other_sums["token_loss"].item(), rel=1e-5)
    for name, grad in grads.items():
        close(other_grads[name], grad, 1e-5)


def test_checkpointing_runs_the_blocks_again_instead_of_keeping_their_insides():
    runs = []
    model = make_model(gradient_checkpointing=True)
    model.inner.retention_level.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    trained(model, make_batch(4, packing=True))
    assert len(runs) == 2


@pytest.mark.parametrize("chunk_size", [4, 128])
def test_packing_changes_neither_loss_nor_gradients(chunk_size):
    packed, plain = make_batch(12, packing=True), make_batch(12, packing=False)
    assert len(packed["inputs"]) < len(plain["inputs"]) == 12
    model = make_model(chunk_size=chunk_size)
    (sums, grads), (plain_sums, plain_grads) = (trained(model, batch) for batch in (packed, plain))
    assert sums["count"] == plain_sums["count"] == 12
    close(sums["token_loss"], plain_sums["token_loss"])
    for name, grad in plain_grads.items():
        close(grads[name], grad, 1e-5)


def test_packed_documents_of_many_chunks_equal_separate_ones():
    model, ids = make_model(chunk_size=16), make_ids(1, 100)
    lengths = [37, 50, 13]
    documents = torch.tensor([[n for n, length in enumerate(lengths) for _ in range(length)]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    alone = torch.cat([hidden_of(model, part) for part in ids.split(lengths, 1)], 1)
    close(hidden_of(model, ids, documents=documents, positions=positions), alone)
    # Angles and fading depend on distances only, so positions need not begin anew.
    close(hidden_of(model, ids, documents=documents), alone)


def test_the_loss_never_makes_logits_of_a_batch(monkeypatch):
    model = make_model()
    monkeypatch.setattr("models.losses.chunked.CHUNK_ELEMENTS", 3 * VOCAB)
    monkeypatch.setattr(model.inner.lm_head, "forward", None)
    sums, _ = trained(model, make_batch(12, packing=True))
    plain_sums, _ = trained(make_model(), make_batch(12, packing=True), chunked=False)
    close(sums["token_loss"], plain_sums["token_loss"])


def test_bfloat16_is_near_float32_and_casts_every_weight_once():
    """Rounding to 8 bits in every layer: what a fresh model says is off by about 1 %."""
    model, narrow = make_model(), make_model(forward_dtype="bfloat16")
    ids = make_ids(2, 300)
    expected, found = hidden_of(model, ids), hidden_of(narrow, ids)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 2e-2
    with weights_cast_once(narrow.inner, torch.bfloat16):
        assert torch.equal(hidden_of(narrow, ids), found)
        assert narrow.inner.retention_level.layers[0].retention.qkvg_proj.working_weight.dtype == torch.bfloat16
    _, grads = trained(narrow, make_batch(12, packing=True))
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())


# --- by the tasks of the engine ---


def test_it_learns_by_the_task_of_text_and_is_judged_by_it():
    head = TextLossHead(make_model())
    task = TextTask(head, CPU, seed=0, total_steps=60)
    (item,) = make_reader(make_store(12), 8, is_test=True)
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-2)
    for step in range(60):
        task.train_step(item, step)
        optimizer.step()
        optimizer.zero_grad()
    sums, outputs = task.eval_batch(item[1], ["preds"])
    report = text_report({name: value.tolist() for name, value in sums.items()})
    assert report["exact_accuracy"] > 0.9 and report["steps"] == 1
    assert report["depth_1/token_loss"] == report["token_loss"] < 0.2
    assert outputs["preds"].shape == item[1]["labels"].shape


def test_a_call_of_the_model_is_one_step_after_which_all_rows_have_ended():
    model, ids = make_model().eval(), make_ids()
    carry, outputs = model(model.initial_carry({"inputs": ids}), {"inputs": ids})
    assert carry.halted.all()
    close(outputs["logits"], model.inner.lm_head(hidden_of(model, ids)))
