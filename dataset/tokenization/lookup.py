"""Finds the file of a tokenizer (a path, a folder, a name of the Hub, the usual places) and loads it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dataset.files.download import find_hub_file, hub_problem, offline_remedy
from dataset.tokenization.protocol import Tokenizer
from dataset.tokenization.sentencepiece import SentencePieceTokenizer
from dataset.tokenization.tokenizer_json import CONFIG_FILE, JSON_FILE, open_json_tokenizer

DEFAULT_TOKENIZER = Path("tokenizers/llama-32k/tokenizer.model")
HUB_TOKENIZER = ("hf-internal-testing/llama-tokenizer", "tokenizer.model")  # the LLaMA 32k pieces, without a gate
FOUR_WAYS = (
    "There are four ways to give one: the path of a SentencePiece model or tokenizer.json in the configuration "
    "(dataset.tokenizer_path, or --tokenizer-path), the environment variable LLAMA_TOKENIZER, a file at "
    f"{DEFAULT_TOKENIZER}, or a network that reaches the Hugging Face Hub ({HUB_TOKENIZER[0]})."
)
WAYS = f"Give a folder with {JSON_FILE}, such a file, a SentencePiece model (*.model), or a name of the Hub."

MODEL_FILES, VOCAB_FILE, MERGES_FILE = "*.model", "vocab.json", "merges.txt"
# What is fetched of a repository for each kind, tried in this order; only the first of each must be there.
HUB_FILES = {
    JSON_FILE: (JSON_FILE, CONFIG_FILE),
    VOCAB_FILE: (VOCAB_FILE, MERGES_FILE),
    MODEL_FILES: ("tokenizer.model",),
}
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer file, or the one in a folder (such as a checkpoint)."""
    file = tokenizer_file(Path(path), (MODEL_FILES, JSON_FILE), FOUR_WAYS)
    return open_json_tokenizer(file) if file.suffix == ".json" else SentencePieceTokenizer(file)


def open_tokenizer(name: str) -> Tokenizer:
    """Load a file or folder; any other name is fetched from the Hub (HF_TOKEN, the cache and HF_HUB_OFFLINE count)."""
    return load_tokenizer(named_tokenizer_file(name, (JSON_FILE, MODEL_FILES), WAYS))


def find_tokenizer(explicit_path: str | Path | None = None) -> Path:
    """The tokenizer to use: the given one, LLAMA_TOKENIZER, the default place, or (into that place) the Hub's."""
    from_environment = os.environ.get("LLAMA_TOKENIZER")
    for source, path in (("", explicit_path), ("LLAMA_TOKENIZER names ", from_environment)):
        if path:
            if not Path(path).exists():
                raise ValueError(f"{source}{path}, which does not exist. {FOUR_WAYS}")
            return Path(path)
    if DEFAULT_TOKENIZER.exists():
        return DEFAULT_TOKENIZER
    repo, filename = HUB_TOKENIZER
    try:
        return find_hub_file(repo, filename, DEFAULT_TOKENIZER, repo_type="models").fetch()
    except ValueError as error:
        raise ValueError(f"No tokenizer found: {error} {FOUR_WAYS}") from error


def tokenizer_file(path: Path, kinds: Sequence[str], ways: str) -> Path:
    """`path` if it is a file; of a folder the file of the first of `kinds` that it holds exactly once."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"The tokenizer file {path} does not exist. {ways}")
    for kind in kinds:
        files = sorted(path.glob(kind))
        if kind == MODEL_FILES and path / "tokenizer.model" in files:
            return path / "tokenizer.model"
        if len(files) == 1 and (kind != VOCAB_FILE or (path / MERGES_FILE).is_file()):
            return files[0]
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"Expected one of {', '.join(kinds)} in the folder {path}, found {found}. {ways}")


def named_tokenizer_file(name: str, kinds: Sequence[str], ways: str) -> Path:
    """The tokenizer file at a path, or else of a repository of the Hub, fetched into the cache."""
    if name and Path(name).exists():
        return tokenizer_file(Path(name), kinds, ways)
    if not HUB_NAME.fullmatch(name) or name.endswith((".json", ".model")):
        raise ValueError(
            f"The tokenizer {name!r} is not a file or folder that exists, and not a name of the Hub. {ways}"
        )
    from huggingface_hub.errors import HfHubHTTPError

    problem = hub_problem()
    try:
        for kind, files in HUB_FILES.items():
            if kind in kinds and (found := _fetch(name, files[0], problem is not None)):
                for file in files[1:]:
                    _fetch(name, file, problem is not None)
                return found
    except (HfHubHTTPError, OSError) as error:  # also gated and unknown
        problem = f"{' '.join(str(error).split())[:300]} If the model is gated, accept its licence and set HF_TOKEN"
    if problem is not None:
        raise ValueError(
            f"The tokenizer {name!r} is not a file or folder here nor in the Hub's cache, and the Hub did not give it: "
            f"{problem}. {offline_remedy(name)} {ways}"
        )
    wanted = ", ".join(" with ".join(files) for kind, files in HUB_FILES.items() if kind in kinds)
    raise ValueError(f"The repository {name} holds none of {wanted}. {ways}")


def _fetch(repo: str, file: str, only_cached: bool) -> Path | None:
    """None if the repository, or its part in the cache, does not hold the file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, local_files_only=only_cached))
    except LocalEntryNotFoundError:
        if not only_cached:
            raise  # not that the repository lacks it, but that nobody could ask
        return None
    except EntryNotFoundError:
        return None
