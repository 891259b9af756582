"""A Hub that does not answer: what is said of it, how often it is asked, and that caches are then taken as they are."""

import time
from pathlib import Path

import pytest

import dataset.files.download as hub
from dataset.tokenization.lookup import open_tokenizer
from src.distillation.corpus.download import main_baseline
from src.distillation.teachers.causal_lm import load_causal_lm

NOWHERE = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: pytest.fail("waits for a Hub that does not answer"))


def open_model(name: str) -> None:
    import torch

    load_causal_lm(name, dtype=torch.float32)


@pytest.mark.parametrize("opens", [open_tokenizer, open_model])
def test_a_hub_that_does_not_answer_is_said_once_with_the_way_around(opens, caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="hf download ann/none") as told:
        opens("ann/none")
    assert NOWHERE in str(told.value) and "refused" in str(told.value) and "Errno" not in str(told.value)
    assert not caplog.records and time.monotonic() - started < 10


def test_the_first_download_that_reaches_nobody_is_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main_baseline(tmp_path, [])
    told = capsys.readouterr().err
    assert left.value.code == 1 and told.count("Cannot reach") == 1 and "Errno" not in told
    assert "not downloaded: metamath, code_search_net, apps, mbpp" in told and "metamath.jsonl by hand" in told


def test_a_server_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import urllib.error
    from email.message import Message

    waited: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", waited.append)

    def busy(url: str) -> None:
        raise urllib.error.HTTPError(url, 503, "Service Unavailable", Message(), None)

    monkeypatch.setattr(hub, "_open_url", busy)
    with pytest.raises(ValueError, match="503") as told:
        hub.hub_files("ann/data", tmp_path / "file")
    assert waited == list(hub.RETRY_SECONDS) and not isinstance(told.value, hub.HubUnreachable)
