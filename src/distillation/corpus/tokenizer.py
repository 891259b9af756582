"""The tokenizer of a corpus and its teacher: a Hugging Face folder, file or name, or a SentencePiece model."""

import hashlib
import json
import re
from pathlib import Path

from dataset.tokenization.sentencepiece import Tokenizer, load_tokenizer
from dataset.tokenization.tokenizer_json import CONFIG_FILE, JSON_FILE, WAYS, JsonTokenizer, open_json_tokenizer
from src.distillation.corpus.manifest import TokenizerFacts

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def open_tokenizer(name: str) -> Tokenizer:
    """Open a folder or file; any other name is fetched from the Hub (HF_TOKEN, the cache and HF_HUB_OFFLINE count)."""
    path = Path(name)
    if path.is_dir():
        if (path / JSON_FILE).is_file():
            return open_json_tokenizer(path / JSON_FILE)
        if any(path.glob("*.model")):
            return load_tokenizer(path)
        raise ValueError(f"The folder {path} holds neither {JSON_FILE} nor a *.model. {WAYS}")
    if path.is_file():
        return load_tokenizer(path) if path.suffix == ".model" else open_json_tokenizer(path)
    if not HUB_NAME.fullmatch(name) or path.suffix in (".json", ".model"):
        raise ValueError(f"The tokenizer {name} is no file or folder that exists, and no name of the Hub. {WAYS}")
    return _fetch(name)


def tokenizer_facts(name: str, tokenizer: Tokenizer) -> TokenizerFacts:
    """What a manifest keeps of a tokenizer; a path is cut to its last part, which is the same on every machine."""
    if isinstance(tokenizer, JsonTokenizer):
        pieces = tokenizer.pieces()
    else:
        pieces = [tokenizer.piece_bytes(index).hex() for index in range(tokenizer.vocab_size)]
    content = json.dumps([pieces, tokenizer.bos_id, tokenizer.eos_id])
    return TokenizerFacts(
        name=Path(name).resolve().name if Path(name).exists() else name,
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )


def _fetch(name: str) -> Tokenizer:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError:
            raise  # not that the repository lacks it, but that nobody could ask
        except EntryNotFoundError:
            return None

    try:
        if found := fetch(JSON_FILE):
            return JsonTokenizer(found, fetch(CONFIG_FILE))
        if found := fetch("tokenizer.model"):
            return load_tokenizer(found)
    except (HfHubHTTPError, OSError) as error:  # also gated, unknown and out of reach
        raise ValueError(
            f"The tokenizer {name} is no file or folder here, and the Hub did not give it: "
            f"{' '.join(str(error).split())[:300]} If the model is gated, accept its licence and set HF_TOKEN. {WAYS}"
        ) from error
    raise ValueError(f"The repository {name} holds neither {JSON_FILE} nor tokenizer.model. {WAYS}")
