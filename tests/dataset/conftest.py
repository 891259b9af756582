"""A small SentencePiece model trained on the spot, SlimOrca-like files, and a stand-in for the Hugging Face Hub."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataset.text.sample_corpus import train_tokenizer
from dataset.tokenization.sentencepiece import SentencePieceTokenizer
from tests.dataset.instruct_samples import WORDING, FakeHub, HubHandler, serve_hub


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(WORDING, vocab_size=400))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(tokenizer_path)


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[[list[str]], Path]:
    """Write lines as the SlimOrca.jsonl of a data folder, and give the folder."""

    def write(lines: list[str]) -> Path:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        (folder / "SlimOrca.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return folder

    return write


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()
    with serve_hub(monkeypatch, type("Handler", (HubHandler,), {"hub": fake})) as fake.endpoint:
        yield fake
