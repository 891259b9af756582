"""The leak probes: every text model of ours passes, and each probe fails on a model or loader that leaks on purpose."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from dataset.common import IGNORE_LABEL_ID
from engine.build import text as build_text
from engine.config.check import check
from engine.config.compose import composed
from engine.config.text import InstructConfig
from lab import probes
from lab.probes import LIMIT, Finding, influence, may_see, probe_batches, probe_model, synthetic_row
from models import core
from models.attention import AttentionMask
from tests.engine.text_samples import ARCHS, CPU, make_head, make_reader, make_store
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import Ended, run_door

STEPS = 3
ROOMY = {"seq_len": 24}


def named(findings: Sequence[Finding], words: str) -> Finding:
    (found,) = [finding for finding in findings if words in finding.probe]
    return found


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "post", "grad_cycles": "last_cycle", "supervise": "step", "pos_encodings": "learned"},
        {"prefix_mask": True, "latent_init": "embedding"},
        {"forward_dtype": "bfloat16", "pos_encodings": "none"},
    ],
)
def test_no_text_model_leaks_at_any_depth(arch, options):
    findings = probe_model(make_head(arch, **ROOMY, **options), STEPS)
    assert len(findings) == (5 if options.get("prefix_mask") else 3)
    for finding in findings:
        assert finding.is_clean and finding.leak == 0, str(finding)
        assert finding.sight > 1e-3, "a probe must see what is there to be seen"


def test_influence_is_exactly_what_the_rule_allows():
    for has_open_prompt in (False, True):
        head = make_head(**ROOMY, prefix_mask=has_open_prompt)
        row = synthetic_row(((5, 4), (3, 4), (2, 3)), 40, 24)
        assert torch.equal(influence(head, row, STEPS) > LIMIT, may_see(row, has_open_prompt))


def test_the_rule_says_who_sees_whom():
    row = synthetic_row(((2, 1), (1, 1)), 40, 6)
    assert row["is_prompt"][0].tolist() == [True, True, False, True, False, False]
    assert row["documents"][0].tolist() == [0, 0, 0, 1, 1, -1]
    inputs, labels = row["inputs"][0].tolist(), row["labels"][0].tolist()
    ignored = IGNORE_LABEL_ID
    assert labels == [ignored, inputs[2], ignored, inputs[4], ignored, ignored]
    seen_by = [[t for t in range(6) if may_see(row, True)[t, i]] for i in range(6)]
    assert seen_by == [[0, 1], [0, 1], [0, 1, 2], [3], [3, 4], [5]]
    assert not may_see(row, False)[1, 0]


def test_a_model_that_looks_ahead_is_found():
    findings = probe_model(make_head(**ROOMY, causal=False), STEPS)
    for kind in (", packed", ", unpacked"):
        ahead = named(findings, f"nothing before it{kind}")
        assert not ahead.is_clean and ahead.leak > 1e-2 and str(ahead).startswith("LEAK")
    assert named(findings, "documents").is_clean, "a mask over documents is still there"


def with_mask(**changed):
    """The mask of a model that forgets something."""
    honest = core.build_mask
    return mock.patch.object(core, "build_mask", lambda **given: honest(**(given | changed)))


def test_a_mask_that_ignores_documents_is_found():
    with with_mask(documents=None):
        findings = probe_model(make_head(**ROOMY), STEPS)
    assert named(findings, "documents").leak > 1e-2
    assert named(findings, "before it, packed").is_clean and named(findings, "before it, unpacked").is_clean


def test_a_prompt_that_sees_an_answer_is_found():
    honest = core.build_mask

    def everything_is_prompt(**given):
        return honest(**(given | {"is_prompt": torch.ones_like(given["is_prompt"])}))

    head = make_head(**ROOMY, prefix_mask=True)
    with mock.patch.object(core, "build_mask", everything_is_prompt):
        findings = probe_model(head, STEPS)
    for kind in (", packed", ", unpacked"):
        assert named(findings, f"no answer{kind}").leak > 1e-2 and named(findings, f"before it{kind}").leak > 1e-2


def test_a_prompt_that_should_see_itself_but_does_not_is_no_pass():
    with with_mask(is_prompt=None):
        findings = probe_model(make_head(**ROOMY, prefix_mask=True), STEPS)
    blind = named(findings, "no answer, packed")
    assert blind.leak == 0 and not blind.is_clean and str(blind).startswith("BLIND")


def test_a_model_that_sees_nothing_is_no_pass():
    def nobody(**given):
        honest = act_mask(**given)
        return AttentionMask(bias=torch.full_like(honest.bias, 0.0).masked_fill(~torch.eye(24).bool(), float("-inf")))

    act_mask = core.build_mask
    head = make_head(**ROOMY)
    with mock.patch.object(core, "build_mask", nobody), torch.no_grad():
        head.model.inner.embed_tokens.embedding_weight.zero_()
        assert not any(finding.is_clean for finding in probe_model(head, STEPS))


def test_a_leak_into_the_halting_head_alone_is_found():
    head = make_head(**ROOMY)
    honest = head.model.inner.q_head.forward
    head.model.inner.q_head.forward = lambda hidden: honest(hidden.flip(1))  # place i reads place S - 1 - i
    assert named(probe_model(head, STEPS), "before it, unpacked").leak > 1e-2


def loader_batches(packing=True):
    return [batch for _, batch, _ in make_reader(make_store(40), 4, packing=packing)]


@pytest.mark.parametrize("packing", [True, False])
def test_our_loader_keeps_labels_out_of_the_inputs(packing):
    findings = probe_batches(loader_batches(packing))
    assert all(finding.is_clean for finding in findings), [str(finding) for finding in findings]
    assert findings[1].leak < 0.2, "chance repeats a token now and then"


def shifted_in_place(batch):
    """The label, that is the next token, is fed at the very place where it is predicted."""
    is_answer = batch["labels"] != IGNORE_LABEL_ID
    return batch | {"inputs": torch.where(is_answer, batch["labels"], batch["inputs"])}


def not_shifted(batch):
    """The label is the token of the same place, as for a masked puzzle."""
    labels = torch.where(batch["labels"] != IGNORE_LABEL_ID, batch["inputs"], batch["labels"])
    return batch | {"labels": labels}


@pytest.mark.parametrize("leak", [shifted_in_place, not_shifted])
@pytest.mark.parametrize("packing", [True, False])
def test_a_loader_that_feeds_the_answer_is_found(leak, packing):
    followers, in_place = probe_batches([leak(batch) for batch in loader_batches(packing)])
    assert in_place.leak > 0.95 and not in_place.is_clean
    assert followers.leak > 0.5 and not followers.is_clean


def test_one_leaky_row_among_many_is_found():
    batches = loader_batches()
    batches[1]["inputs"][0] = shifted_in_place(batches[1])["inputs"][0]
    followers, in_place = probe_batches(batches)
    assert not followers.is_clean and in_place.is_clean


def test_batches_without_labels_prove_nothing():
    batch = loader_batches()[0]
    with pytest.raises(ValueError, match="seq_len"):
        probe_batches([batch | {"labels": torch.full_like(batch["labels"], IGNORE_LABEL_ID)}])


# --- learning nonsense ---


def learned(causal=True, leak=None, steps=80) -> Finding:
    words = ["arch.hidden_size=64", "arch.num_heads=2", "arch.L_layers=1", "arch.H_cycles=1", "arch.L_cycles=1"]
    words += ["arch.halt_max_steps=1", "arch.forward_dtype=float32", "dataset.seq_len=16", "global_batch_size=16"]
    words += ["arch.expansion=1", "dataset.packing=false", "epochs=50", *probes.QUICK]
    config = check(InstructConfig, composed("cfg_pretrain_instruct", words))
    config.arch.__pydantic_extra__["causal"] = causal
    corpus = SimpleNamespace(train=make_store(200), tokenizer=SimpleNamespace(vocab_size=40, pad_id=0))
    honest = build_text.text_reader

    def reader(*given, **options):
        made = honest(*given, **options)
        plain = type(made)._items
        leaky = lambda self, *rest: ((name, leak(batch), size) for name, batch, size in plain(self, *rest))  # noqa: E731
        made.__class__ = type("LeakyDataset", (type(made),), {"_items": leaky} if leak else {})
        return made

    with mock.patch.object(build_text, "text_reader", reader):
        return probes.shuffled_answers(config, CPU, corpus, steps)


def test_a_sound_pipeline_learns_no_more_than_frequencies():
    finding = learned()
    assert finding.is_clean and -1 < finding.leak < 0.1, str(finding)


@pytest.mark.parametrize("options", [{"causal": False, "steps": 160}, {"leak": shifted_in_place}])
def test_a_leaky_pipeline_learns_the_unlearnable(options):
    finding = learned(**options)
    assert finding.leak > 0.3 and not finding.is_clean, str(finding)


def test_shuffled_answers_keep_everything_but_their_order():
    store = make_store(20)
    other = probes.with_shuffled_answers(store, 1)
    answers = {}
    for name, made in (("plain", store), ("shuffled", other)):
        documents = [made.document(index) for index in range(20)]
        answers[name] = [token for ids, is_trained in documents for token in ids[is_trained].tolist()]
    assert answers["plain"] != answers["shuffled"] and sorted(answers["plain"]) == sorted(answers["shuffled"])
    for index in range(20):
        (ids, is_trained), (other_ids, other_trained) = store.document(index), other.document(index)
        assert (is_trained == other_trained).all() and (ids[~is_trained] == other_ids[~is_trained]).all()
    frequencies = torch.bincount(torch.tensor(answers["plain"])).float()
    frequencies = frequencies[frequencies > 0] / frequencies.sum()
    judged = torch.tensor(answers["plain"]).numpy()
    assert probes.unigram_loss(store, judged) == pytest.approx(
        -(frequencies * frequencies.log()).sum().item(), rel=1e-5
    )


# --- the door ---


def door(*words: str) -> Ended:
    return run_door("scripts/probe_leaks.py", *words)


TINY = ["arch=trm_tiny", "arch.hidden_size=32", "arch.num_heads=2", "arch.L_layers=1", "dataset.sample_size=150"]
TINY += ["device=cpu", "--train-steps", "0"]


def test_the_door_prints_every_probe_and_leaves_with_0_when_nothing_leaks():
    ended = door(*TINY)
    assert ended.code == 0, ended.err
    assert [line.split()[0] for line in ended.out.splitlines()] == ["pass"] * 5
    assert "limit" in ended.out and "sample corpus" in ended.err


def test_the_door_leaves_with_1_on_a_leak():
    with with_mask(documents=None):
        ended = door(*TINY)
    assert ended.code == 1 and [line.split()[0] for line in ended.out.splitlines()].count("LEAK") == 1


def test_a_checkpoint_is_probed_with_its_own_config_and_tokenizer(tmp_path):
    data = write_corpus(tmp_path / "data")
    trained = train_text(text_flags(data, tmp_path / "run", {"prefix_mask": True}, max_steps=3))
    assert trained.code == 0, trained.err
    ended = door("--checkpoint", str(tmp_path / "run"), "--train-steps", "0")
    assert ended.code == 0, ended.out + ended.err
    assert [line.split()[0] for line in ended.out.splitlines()] == ["pass"] * 7 and "both ways" in ended.out


def test_the_door_ends_in_words_on_bad_input(tmp_path):
    ended = door(*TINY, "arch.causal=false", "arch.hiden_size=3")
    assert ended.code == 1 and ended.out == ""
    assert "arch.causal=false: the model would read the answers" in ended.err
    assert "did you mean hidden_size" in ended.err
    ended = door("--checkpoint", str(tmp_path), *TINY[-3:])
    assert ended.code == 1 and "There is no checkpoint in" in ended.err


def test_findings_say_what_they_measured():
    finding = Finding("x", 0.25, 0.1, unit=" nats")
    assert str(finding) == "LEAK  x: 0.25 nats (limit 0.1)"
    assert str(dataclasses.replace(finding, leak=-0.5)) == "pass  x: -0.5 nats (limit 0.1)"
