"""Files of the Hugging Face Hub: fetched front to back, resumed, checked, and never taken for whole before they are."""

import http.client
import importlib.util
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from dataset.files.disk import check_space, disk_errors, exclusive_lock, file_sha256, write_file

BLOCK_BYTES = 1 << 18
HEAD_STEP_BYTES = 8 << 20  # how much more of a file is asked for when its head turns out too short
TIMEOUT_SECONDS = 30
CONTACT_SECONDS = 10
# Pauses after failures in a row of a busy server or an interrupted transfer; one failure more gives up. A Hub that does
# not answer at all when it is asked first is not asked again.
RETRY_SECONDS = (1, 4, 15)


_offline_because: ContextVar[str | None] = ContextVar("_offline_because", default=None)


@contextmanager
def offline(because: str) -> Iterator[None]:
    """Within, nothing is fetched, as with HF_HUB_OFFLINE; what needs it is refused with this reason."""
    token = _offline_because.set(because)
    try:
        yield
    finally:
        _offline_because.reset(token)


class HubUnreachable(ValueError):
    """Nobody answers: asking for another file would not help."""


@dataclass(frozen=True)
class HubFile:
    """One file at a fixed revision of a repository, and the place it goes to.

    Until it is complete it lies in `<target>.<revision>.part`, always a true beginning of the file.
    `<target>.part.json` holds these fields: a later run continues the same revision, and reads a head that is there
    without a network.
    """

    url: str
    revision: str
    size: int
    sha256: str | None
    target: Path

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.{self.revision[:8]}.part")

    def fetch(self, progress: bool = True) -> Path:
        """Download what is still missing, check the whole, and give it its name."""
        have = self.part.stat().st_size if self.part.exists() else 0
        with tqdm(
            total=self.size, initial=have, desc=f"downloading {self.target.name}", unit="B", unit_scale=True,
            disable=not progress,
        ) as bar:  # fmt: skip
            self._extend(self.size, bar.update)
        return self.target

    def blocks(self) -> Iterator[bytes]:
        """The content from its beginning; only as much of it is downloaded as is asked for."""
        self._extend(min(HEAD_STEP_BYTES, self.size))
        with self.open() as file:
            while True:
                while block := file.read(BLOCK_BYTES):
                    yield block
                if file.tell() >= self.size:
                    break
                self._extend(min(file.tell() + HEAD_STEP_BYTES, self.size))

    def open(self) -> BinaryIO:
        """What is there so far."""
        try:
            return open(self.part, "rb")
        except FileNotFoundError:
            return open(self.target, "rb")

    def _extend(self, stop: int, on_bytes: Callable[[int], Any] = lambda count: None) -> None:
        """Let the part file hold at least `stop` bytes; one that has all becomes the target."""
        folder = self.target.parent
        # Several processes of one machine may start at once. Errors of the network are ValueErrors already.
        with disk_errors(self.part), exclusive_lock(folder, wait=True):
            if not self.target.exists():
                self._append(stop, on_bytes)
                if stop == self.size:
                    self._check()
                    os.replace(self.part, self.target)
            if self.target.exists():
                _description(self.target).unlink(missing_ok=True)

    def _append(self, stop: int, on_bytes: Callable[[int], Any]) -> None:
        with open(self.part, "ab") as out:
            have = os.fstat(out.fileno()).st_size
            check_space(self.target.parent, stop - have)
            for block in self._from_network(have, stop):
                out.write(block)
                out.flush()
                on_bytes(len(block))
            os.fsync(out.fileno())

    def _from_network(self, start: int, stop: int) -> Iterator[bytes]:
        position, failures = start, 0
        while position < stop:
            try:
                with _open_url(self.url, {"Range": f"bytes={position}-{stop - 1}"}) as response:
                    if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # it ignores ranges: skip what we have
                        _skip(response, position)
                    while position < stop:
                        block = response.read(min(BLOCK_BYTES, stop - position))
                        if not block:
                            raise ConnectionError("the server ended the transfer early")
                        yield block
                        position, failures = position + len(block), 0
            except (OSError, http.client.HTTPException) as error:
                failures += 1
                if not _is_passing(error) or failures > len(RETRY_SECONDS):
                    raise ValueError(
                        f"The download of {self.url} stopped at {position / 1e6:.1f} MB of {self.size / 1e6:.1f} MB: "
                        f"{in_words(error)}. Run again to continue, or put the file at {self.target} by hand."
                    ) from error
                time.sleep(RETRY_SECONDS[failures - 1])

    def _check(self) -> None:
        found = self.part.stat().st_size
        digest = file_sha256(self.part) if self.sha256 else None
        if found != self.size or digest != self.sha256:
            self.part.unlink()
            raise ValueError(
                f"The download of {self.url} is damaged: {found} bytes with SHA-256 {digest}, expected {self.size} "
                f"bytes with {self.sha256}. It was deleted; run again to fetch it from scratch."
            )


def hub_files(repo: str, by_hand: Path, repo_type: str = "datasets") -> tuple[str, dict[str, Any]]:
    """The newest revision of a repository, and what the Hub says of each file; errors name the place `by_hand`."""
    api = f"{endpoint()}/api/{repo_type}/{repo}/revision/main?blobs=true"
    try:
        answer = json.loads(_asked(api))
        return answer["sha"], {entry["rfilename"]: entry for entry in answer["siblings"]}
    except (OSError, http.client.HTTPException) as error:
        kind = ValueError if isinstance(error, urllib.error.HTTPError) else HubUnreachable
        raise kind(
            f"Cannot reach {api}: {in_words(error)}. Check the network (and HF_ENDPOINT), or put the file at {by_hand} "
            "by hand."
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{api} did not answer with a list of files ({error!r}). Check HF_ENDPOINT.") from error


def hub_problem() -> str | None:
    """Why the Hub cannot be asked; None if it answers.

    For libraries that would try for half a minute, file by file: without an answer they are to take what is in their cache.
    """
    url = endpoint()
    try:
        with _open_url(url, method="HEAD", timeout=CONTACT_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        return f"{url}: {in_words(error)}"
    except HubUnreachable as error:
        return str(error).removesuffix(".")


def offline_remedy(repo: str) -> str:
    return (
        f"Offline: `hf download {repo} --local-dir FOLDER` where there is a network, copy that folder and name it here."
    )


def in_words(error: BaseException) -> str:
    """The cause of a request's failure."""
    if isinstance(error, urllib.error.HTTPError):
        gated = "; if the repository is gated, accept its licence and set HF_TOKEN" if error.code in (401, 403) else ""
        return f"it answered {error.code} ({error.reason}){gated}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, socket.gaierror):
        return "the name of the server cannot be resolved"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return (isinstance(reason, OSError) and reason.strerror) or str(reason) or type(reason).__name__


def find_hub_file(
    repo: str, choose: str | Callable[[list[str]], str], target: Path, repo_type: str = "datasets"
) -> HubFile:
    """The file of that name, or that `choose` picks from the list of names, or the one whose download `target` began."""
    description = _description(target)
    with suppress(FileNotFoundError, NotADirectoryError):
        return HubFile(**json.loads(description.read_text()), target=target)
    revision, files = hub_files(repo, target, repo_type)
    name = choose if isinstance(choose, str) else choose(list(files))
    if name not in files:
        raise ValueError(f"The repository {repo} holds no {name}, only {', '.join(sorted(files))}.")
    lfs = files[name].get("lfs") or {}
    prefix = "datasets/" if repo_type == "datasets" else ""
    found = HubFile(
        url=f"{endpoint()}/{prefix}{repo}/resolve/{revision}/{urllib.parse.quote(name)}",
        revision=revision,
        size=int(lfs.get("size") or files[name]["size"]),
        sha256=lfs.get("sha256"),
        target=target,
    )
    fields = {key: value for key, value in asdict(found).items() if key != "target"}
    write_file(description, json.dumps(fields))
    return found


def endpoint() -> str:
    """The address of the Hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _asked(url: str) -> bytes:
    """What a GET answers; a server that is busy is asked again."""
    for pause in (*RETRY_SECONDS, None):
        try:
            with _open_url(url) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if pause is None or not _is_passing(error):
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _open_url(
    url: str, headers: dict[str, str] | None = None, *, method: str = "GET", timeout: float = TIMEOUT_SECONDS
) -> http.client.HTTPResponse:
    because = _offline_because.get()
    if because is None and os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        because = "HF_HUB_OFFLINE is set"
    if because is not None:
        raise HubUnreachable(f"{because}, so {url} is not fetched. Leave that out or provide the file by hand.")
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    return urllib.request.urlopen(request, timeout=timeout, context=_certificates())


def _certificates() -> ssl.SSLContext:
    """Those of the system, and those that come with Python packages: some systems offer Python none."""
    context = ssl.create_default_context()
    if importlib.util.find_spec("certifi"):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _is_passing(error: Exception) -> bool:
    """Whether trying again may help: not when the server has understood and refused."""
    return not isinstance(error, urllib.error.HTTPError) or error.code in (408, 425, 429) or error.code >= 500


def _skip(response: http.client.HTTPResponse, count: int) -> None:
    while count > 0:
        block = response.read(min(BLOCK_BYTES, count))
        if not block:
            raise ConnectionError("the server ended the transfer early")
        count -= len(block)


def _description(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")
