"""Checkpoints on the Hugging Face Hub, by name: models that this project exported, and files of the reference."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from engine.checkpoints.find import META_FILE, MODEL_FILE, step_of

NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)((?:/\w[\w.-]*)*)", re.ASCII)
OUR_ROOT = "checkpoints"  # where runs go; a run that is not there is not asked for elsewhere
REFERENCE_CONFIG_FILE = "all_config.yaml"  # lies beside the checkpoint files that the reference code writes
STATE_DICTS = (".pt", ".pth", ".bin")


def is_hub_name(text: str) -> bool:
    """Whether this can be owner/name, or owner/name/place, rather than a path here."""
    return NAME.fullmatch(text) is not None and not Path(text.partition("/")[0]).exists() and not text.startswith(OUR_ROOT)


def fetched(name: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The checkpoint of that name in the Hub's cache, fetched if it is not there (HF_TOKEN and HF_HUB_OFFLINE count)."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from dataset.files.download import endpoint, hub_problem, offline_remedy

    parts = NAME.fullmatch(name)
    assert parts is not None
    repo, place = parts[1], parts[2].strip("/")
    problem = hub_problem()
    where: dict[str, Any] = {"endpoint": endpoint(), "revision": revision, "token": token}
    try:
        if problem is None:
            files: Sequence[str] = HfApi(endpoint=endpoint(), token=token).list_repo_files(repo, revision=revision)
            chosen, wanted = chosen_file(files, place, repo)
            found = snapshot_download(repo, **where, allow_patterns=wanted)
        else:
            found = snapshot_download(repo, **where, local_files_only=True, allow_patterns=[META_FILE])
            here = [str(path.relative_to(found)) for path in Path(found).rglob("*") if path.is_file()]
            chosen, _ = chosen_file(here, place, repo)
        return Path(found) / chosen
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        problem = problem or " ".join(str(error).split())[:300]
        raise ValueError(
            f"There is no checkpoint at {name}: no such path here, and not in the Hub's cache, and the Hub did not give it: "
            f"{problem}. If the repository is private or gated, set HF_TOKEN. {offline_remedy(repo)}"
        ) from error


def chosen_file(files: Sequence[str], place: str, repo: str) -> tuple[str, list[str]]:
    """The file or folder of a repository that is a checkpoint, and the files to fetch for it."""
    paths = [PurePosixPath(file) for file in files]
    inside = [path for path in paths if path == PurePosixPath(place) or PurePosixPath(place) in path.parents]
    exports = list(dict.fromkeys(path.parent for path in inside if path.name in (META_FILE, MODEL_FILE)))
    if len(exports) == 1:
        return str(exports[0]), [str(path) for path in paths if path.parent == exports[0]]
    found = [path for path in inside if step_of(path) is not None or path.suffix in STATE_DICTS]
    if not exports and len(found) == 1:
        return str(found[0]), [str(found[0]), str(found[0].parent / REFERENCE_CONFIG_FILE)]
    if exports or found:
        names = ", ".join(f"{repo}/{path}" for path in (*exports, *found))
        raise ValueError(f"{repo} holds {len(exports) + len(found)} checkpoints; name one of them: {names}.")
    raise ValueError(
        f"{repo} holds no checkpoint{f' at {place}' * bool(place)}, only {', '.join(sorted(files)[:20])}. Expected "
        f"{MODEL_FILE} of an export, or a state dict called step_<N> or *.pt."
    )
