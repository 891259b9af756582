"""lm-eval scores a checkpoint through the server as it does beside it."""

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
pytest.importorskip("aiohttp")
pytest.importorskip("tenacity")

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from transformers import PreTrainedTokenizerFast

from lab.harness.model import checkpoint_lm

PAIRS = [("My name is", " Ada and I have 3 cats."), ("Hello", " Bo!"), ("How many cats", " do I have?")]


@pytest.fixture(scope="module")
def tokenizer(loaded, tmp_path_factory):
    """The checkpoint's own, as transformers opens it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (file,) = [path for path in loaded.tokenizer.files() if path.name == "tokenizer.json"]
    found = PreTrainedTokenizerFast(tokenizer_file=str(file))
    found.eos_token = found.convert_ids_to_tokens(loaded.tokenizer.eos_id)
    found.save_pretrained(folder)
    return folder


def asked(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


@pytest.mark.parametrize("as_ids", [True, False], ids=["ids", "texts"])
def test_loglikelihoods_are_those_of_the_adapter(started, loaded, tokenizer, as_ids):
    api = LocalCompletionsAPI(
        base_url=f"http://127.0.0.1:{started()}/v1/completions",
        tokenizer_backend="huggingface",
        model="ada",
        tokenizer=str(tokenizer),
        tokenized_requests=as_ids,
        max_retries=1,
        batch_size=2,
        add_bos_token=False,
    )
    expected = checkpoint_lm(loaded, None, batch_size=2).loglikelihood(
        asked("loglikelihood", *PAIRS), disable_tqdm=True
    )
    found = api.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    for (logprob, is_greedy), (wanted, was_greedy) in zip(found, expected, strict=True):
        assert logprob == pytest.approx(wanted, abs=1e-3) and is_greedy == was_greedy


def test_texts_are_generated_through_it(started, loaded, tokenizer):
    api = LocalCompletionsAPI(
        base_url=f"http://127.0.0.1:{started()}/v1/completions",
        tokenizer_backend="huggingface",
        model="ada",
        tokenizer=str(tokenizer),
        max_retries=1,
    )
    wanted = {"until": ["\n"], "max_gen_toks": 8, "temperature": 0}
    (found,) = api.generate_until(asked("generate_until", ("My name is", wanted)), disable_tqdm=True)
    (expected,) = checkpoint_lm(loaded, None, batch_size=1).generate_until(
        asked("generate_until", ("My name is", wanted)), disable_tqdm=True
    )
    assert found == expected
