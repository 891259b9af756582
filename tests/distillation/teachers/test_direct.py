"""A causal model as the teacher: documents stay apart, and each kind of answer is what it says."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dataset.common import Batch
from models.losses.distill import NO_MASS, UNUSED
from src.distillation.targets.topk import drawn
from src.distillation.teachers import direct as direct_teacher
from src.distillation.teachers.direct import DirectTeacher
from tests.distillation.cache_samples import (
    VOCAB_SIZE,
    batch_of,
    direct,
    divergence,
    same_signal,
    whole_distributions,
    write_all,
)
from tests.distillation.teacher_samples import llama_config, write_llama


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("direct"))


@pytest.fixture(scope="module")
def batch(root: Path) -> Batch:
    return batch_of(root, range(4))


def test_documents_of_a_row_are_read_as_if_alone(root: Path, batch: Batch) -> None:
    assert (batch["documents"].max(-1).values > 0).all(), "every row has several documents"
    said = direct(root, kind="dense").signal(batch)
    expected = whole_distributions(root, batch)
    assert (said.logprobs - expected)[said.valid].abs().max() < 1e-4

    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(root / "teacher").eval()
    with torch.no_grad():  # positions that restart, as is often thought to be enough
        leaking = model(
            batch["inputs"].long(),
            attention_mask=torch.ones_like(batch["inputs"]),
            position_ids=batch["positions"].long(),
            use_cache=False,
        ).logits.log_softmax(-1)
    assert (leaking - expected)[said.valid].abs().max() > 0.1


def test_valid_is_where_the_next_token_is_of_the_same_document(root: Path, batch: Batch) -> None:
    said = direct(root).signal(batch)
    assert torch.equal(said.valid, batch["labels"] != -100)
    assert said.ids is not None and (said.ids[~said.valid] == UNUSED).all()
    assert (said.logprobs[~said.valid] == NO_MASS).all()


def test_topk_are_the_likeliest_in_order_however_it_is_chunked(root: Path, batch: Batch) -> None:
    whole = direct(root, kind="dense").signal(batch)
    said = direct(root, k=5).signal(batch)
    expected = whole.logprobs[said.valid].topk(5)
    assert said.ids is not None and torch.equal(said.ids[said.valid].long(), expected.indices)
    assert torch.allclose(said.logprobs[said.valid], expected.values, atol=1e-6)

    from transformers import LlamaForCausalLM

    sizes = []

    class Watched(DirectTeacher):
        def _logprobs(self, hidden: Tensor) -> Tensor:
            sizes.append(len(hidden))
            return super()._logprobs(hidden)

    model = LlamaForCausalLM.from_pretrained(root / "teacher")
    small = Watched(model, vocab_size=VOCAB_SIZE, k=5, chunk_elements=7 * VOCAB_SIZE).signal(batch)
    assert max(sizes) == 7 and sum(sizes) == said.valid.sum()
    assert torch.equal(small.ids, said.ids) and torch.allclose(small.logprobs, said.logprobs, atol=1e-5)


def test_log_norms_make_the_distribution_at_another_temperature(root: Path, batch: Batch) -> None:
    teacher = direct(root, kind="topk", temperatures=(2.0, 1.0, 0.5))
    assert teacher.facts.temperatures == (0.5, 1.0, 2.0)
    said, whole = teacher.signal(batch), whole_distributions(root, batch)
    for column, temperature in enumerate(teacher.facts.temperatures):
        expected = (whole / temperature).log_softmax(-1).gather(-1, said.ids.long().clamp(min=0))
        found = said.logprobs / temperature - said.log_norms[..., column, None]
        assert torch.allclose(found[said.valid], expected[said.valid], atol=1e-4)
    with pytest.raises(ValueError, match="temperatures 0.5, 1, 2"):
        teacher.facts.column(3.0)


def test_drawn_ids_are_unbiased_and_close_to_the_distribution(root: Path, batch: Batch) -> None:
    whole = whole_distributions(root, batch).exp()
    mean, draws, places = torch.zeros_like(whole), 40, 8
    for seed in range(draws):
        said = direct(root, kind="sampled", k=places, seed=seed).signal(batch)
        assert said.ids is not None and said.shares is not None
        used = said.ids != UNUSED
        assert torch.allclose(said.shares.sum(-1)[said.valid], torch.ones(()))
        assert (said.shares[used] > 0).all() and (said.shares[~used] == 0).all()
        shares = torch.zeros_like(whole).scatter_add_(-1, said.ids.long().clamp(min=0), said.shares)
        assert (shares - whole)[said.valid].abs().max() <= 1 / places + 1e-5
        mean += shares / draws
    off = (mean - whole)[said.valid]
    assert off.abs().max() < 4 * 0.5 / places / draws**0.5  # four deviations at the most uncertain share
    assert off.square().mean().sqrt() < 0.01
    assert torch.allclose(said.logprobs[used], whole.log().gather(-1, said.ids.long().clamp(min=0))[used], atol=1e-4)


def test_impossible_ids_are_never_drawn() -> None:
    logprobs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log()
    for offset in (0.0, 0.5, 1 - 2**-24):
        _, ids, shares = drawn(logprobs, 4, torch.tensor([offset]))
        assert ids.tolist() == [[1, 3, UNUSED, UNUSED]] and shares.tolist() == [[0.5, 0.5, 0, 0]]


def test_a_row_gets_the_same_draws_in_every_batch(root: Path) -> None:
    teacher = direct(root, kind="sampled", k=8, seed=3)
    together, alone = teacher.signal(batch_of(root, [0, 1, 2])), teacher.signal(batch_of(root, [2]))
    assert torch.equal(together.ids[2], alone.ids[0]) and torch.equal(together.shares[2], alone.shares[0])
    other = direct(root, kind="sampled", k=8, seed=4).signal(batch_of(root, [2]))
    assert not torch.equal(other.ids, alone.ids)
    assert not torch.equal(together.ids[0][:20], together.ids[1][:20])


def test_ids_beyond_the_corpus_get_no_probability(root: Path, batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    write_llama(root / "padded", initializer_range=0.4, vocab_size=VOCAB_SIZE + 5)
    teacher = direct(root, model=root / "padded", kind="dense")
    assert "264 ids" in capsys.readouterr().err
    said = teacher.signal(batch)
    assert said.logprobs.shape[-1] == VOCAB_SIZE == teacher.facts.vocab_size
    assert torch.allclose(said.logprobs.exp().sum(-1), torch.ones(()), atol=1e-5)


def test_a_smaller_vocabulary_is_refused(root: Path) -> None:
    write_llama(root / "small", vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ValueError, match="200 ids.*259"):
        direct(root, model=root / "small", k=64)
    with pytest.raises(ValueError, match="teacher_topk=300"):
        direct(root, k=300)


def test_rows_longer_than_the_model_knows_are_refused(root: Path, batch: Batch) -> None:
    write_llama(root / "short", max_position_embeddings=32)
    with pytest.raises(ValueError, match="32 positions"):
        direct(root, model=root / "short").signal(batch)


def test_the_teacher_runs_where_a_student_would(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    def no_model(*_: object, dtype: torch.dtype, **__: object) -> None:
        raise LookupError(str(dtype))

    asked = []
    monkeypatch.setattr(direct_teacher, "dtype_of", lambda name, device: asked.append(device))
    monkeypatch.setattr(direct_teacher, "load_causal_lm", no_model)
    with pytest.raises(LookupError):
        direct(root)
    assert asked == [torch.device("mps")]


def test_a_model_that_is_nowhere_says_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="someone/nothing .*HF_TOKEN"):
        direct(root, model="someone/nothing")


def test_code_that_comes_with_a_model_is_not_run(root: Path) -> None:
    folder = root / "foreign"
    folder.mkdir()
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": names}))
    (folder / "code.py").write_text(f"open({str(root / 'was_run')!r}, 'w')")
    with pytest.raises(ValueError, match="foreign"):
        direct(root, model=str(folder))
    assert not (root / "was_run").exists()


def test_fingerprint_follows_weights_and_adapter(root: Path, batch: Batch) -> None:
    import peft
    from transformers import LlamaForCausalLM

    plain = direct(root)
    write_llama(root / "again", initializer_range=0.4)
    write_llama(root / "other", seed=1, initializer_range=0.4)
    assert direct(root, model=str(root / "again")).facts.fingerprint == plain.facts.fingerprint
    assert direct(root, model=str(root / "other")).facts.fingerprint != plain.facts.fingerprint

    torch.manual_seed(0)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(LlamaForCausalLM.from_pretrained(root / "teacher"), settings)
    tuned.save_pretrained(root / "adapter")
    adapted = direct(root, adapter_path=str(root / "adapter"))
    assert adapted.facts.fingerprint != plain.facts.fingerprint
    expected = DirectTeacher(tuned.merge_and_unload(), vocab_size=VOCAB_SIZE, k=16).signal(batch)
    assert divergence(adapted.signal(batch)) == pytest.approx(divergence(expected), abs=1e-5)
    assert not same_signal(adapted.signal(batch), plain.signal(batch))

    (root / "adapter" / "adapter_model.safetensors").rename(root / "adapter" / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        direct(root, adapter_path=str(root / "adapter"))


def test_other_pieces_beside_the_model_are_told_of(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (root / "tokenizer" / "tokenizer.json").read_text()
    write_llama(root / "beside", initializer_range=0.4)
    (root / "beside" / "tokenizer.json").write_text(text)
    direct(root, model=str(root / "beside"))
    assert "tokenizer.json" not in capsys.readouterr().err
    (root / "beside" / "tokenizer.json").write_text(text.replace('"<|eot|>"', '"<|pad|>"'))
    direct(root, model=str(root / "beside"))
    assert "tokenizer.json" in capsys.readouterr().err


def test_a_model_in_memory_is_a_teacher_too(batch: Batch) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama_config())
    teacher = DirectTeacher(model, vocab_size=VOCAB_SIZE, k=4)
    assert teacher.signal(batch).logprobs.shape == (*batch["inputs"].shape, 4)
    assert teacher.facts.fingerprint == DirectTeacher(model, vocab_size=VOCAB_SIZE, k=9).facts.fingerprint
