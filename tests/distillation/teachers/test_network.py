"""A server of prompt log-probabilities as the teacher: the same answers as the model's own, and clear words if not."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from dataset.common import Batch
from src.distillation.cache.options import CacheOptions
from src.distillation.targets.signal import Teacher
from src.distillation.teachers import completion_client
from tests.distillation.cache_samples import (
    batch_of,
    cached,
    direct,
    divergence,
    open_with,
    write_all,
    write_cache,
)
from tests.distillation.fake_server import serving


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def model(root: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(root / "teacher").eval()


@pytest.fixture(scope="module")
def batch(root: Path) -> Batch:
    return batch_of(root, range(4))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_client, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)


def network(root: Path, url: str, **changes: Any) -> Teacher:
    return open_with(root, "network", url=url, **({"k": 16, "max_retries": 1} | changes))


def test_the_server_teaches_what_the_model_teaches(root: Path, model: Any, batch: Batch) -> None:
    expected = direct(root).signal(batch)
    with serving(model) as server:
        teacher = network(root, server.url + "/v1/")
        said = teacher.signal(batch)
        teacher.close()
    assert torch.equal(said.valid, expected.valid) and torch.equal(said.ids, expected.ids)
    assert abs(divergence(said) - divergence(expected)) < 1e-5
    assert (said.logprobs - expected.logprobs)[said.valid].abs().max() < 1e-5
    assert teacher.facts.temperatures == (1.0,)
    sent = sorted(tuple(question["prompt"]) for question in server.asked)
    texts = [
        tuple(row[documents == number].tolist())
        for row, documents in zip(batch["inputs"], batch["documents"], strict=True)
        for number in documents.unique().tolist()
        if number >= 0 and (documents == number).sum() > 1
    ]
    assert sent == sorted(texts), "each document by itself"
    assert {question["model"] for question in server.asked} == {"tiny"}


def test_the_cache_of_a_server_is_made_like_any(root: Path, model: Any, tmp_path: Path) -> None:
    with serving(model) as server:
        flags = ["--data-path", str(root / "packed"), "--output-dir", str(tmp_path), "--topk", "16", "--split", "val"]
        completion_flags = ["--teacher-url", server.url, "--teacher-model", "tiny", "--workers", "2"]
        write_cache(root, *flags, *completion_flags)
    batch = batch_of(root, [0, 1], "val")
    said, expected = cached(root, cache_dir=tmp_path).signal(batch), direct(root).signal(batch)
    assert torch.equal(said.ids, expected.ids) and divergence(said) == pytest.approx(divergence(expected), rel=1e-3)


def test_a_busy_server_is_asked_again(root: Path, model: Any, batch: Batch) -> None:
    expected = direct(root).signal(batch).ids
    with serving(model, failures=3) as server:
        teacher = network(root, server.url, max_retries=4)
        assert torch.equal(teacher.signal(batch).ids, expected)
        teacher.close()
    with (
        serving(model, failures=10**6) as server,
        pytest.raises(
            ValueError,
            match=rf"{server.url}/v1/completions .*2 attempts.*503",
        ),
    ):
        network(root, server.url).signal(batch)


def test_no_server_is_said_at_the_start(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ValueError, match=rf"{url}/v1/models .*2 attempts"):
        network(root, url)


def test_a_silent_server_is_given_up(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match=r"1 attempts of at most 0.2 s"):
            network(root, url, timeout=0.2, max_retries=0)


def test_a_model_that_is_not_served_is_named(root: Path, model: Any) -> None:
    with (
        serving(model) as server,
        pytest.raises(ValueError, match="llama.*tiny.*teacher_model"),
    ):
        network(root, server.url, model="llama")


def test_too_few_logprobs_name_the_option_of_the_server(root: Path, model: Any, batch: Batch) -> None:
    with (
        serving(model) as server,
        pytest.raises(ValueError, match="--max-logprobs 21"),
    ):
        network(root, server.url, k=21).signal(batch)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no json", "JSON.*<html>"),
        ("ignored", r"choices\[0\].prompt_logprobs"),
        ("no first", r"prompt_logprobs is a list of \d+"),
        ("few", "15 ids, 16"),
        ("not a number", "prompt_logprobs .*NaN"),
        ("huge", r"\d MB"),
        ("moved", "elsewhere.invalid.*teacher_url"),
    ],
)
def test_an_answer_that_is_not_understood_is_refused(
    root: Path, model: Any, batch: Batch, fault: str, words: str
) -> None:
    with serving(model, fault=fault) as server, pytest.raises(ValueError, match=words):
        network(root, server.url).signal(batch)


def test_the_key_is_sent_and_never_shown(root: Path, model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model) as server:
        network(root, server.url, api_key="sesame").signal(batch)
        monkeypatch.setenv("TEACHER_API_KEY", "poppy")
        network(root, server.url).signal(batch)
    assert set(server.keys) == {"Bearer sesame", "Bearer poppy"}
    with serving(model, fault="denied") as server, pytest.raises(ValueError) as found:
        network(root, server.url, api_key="sesame").signal(batch)
    assert "401" in str(found.value) and "Set TEACHER_API_KEY" in str(found.value)
    assert "sesame" not in str(found.value)
    assert "sesame" not in repr(CacheOptions(data_path="a", output_dir="b", teacher_url="http://a", api_key="sesame"))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://name:word@a:1", "http://", ""])
def test_an_address_must_be_one(root: Path, url: str) -> None:
    with pytest.raises(ValueError, match="teacher_url") as found:
        network(root, url)
    assert "word" not in str(found.value).replace("password", "")
