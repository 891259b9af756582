"""Keeps a copy of a packed corpus in memory (/dev/shm), for machines whose disk is slower than their training."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.runtime.devices import Runtime
from engine.runtime.machine import MachineRanks
from src.distillation.corpus.manifest import MANIFEST_FILE, Manifest, load_manifest

SHARED_MEMORY = Path("/dev/shm")
RESERVE_BYTES = 1 << 30  # left free for everything else that lives there, such as what data workers share


@contextmanager
def corpus_in_memory(folder: Path, runtime: Runtime, *, cleanup: bool, root: Path = SHARED_MEMORY) -> Iterator[Path]:
    """Within the block the corpus may be read from the folder that is given; the folder itself if memory has no room.

    A copy stays for the next run unless `cleanup` is set. Its name holds the fingerprint of the corpus, so that a copy
    of what the corpus was before is never read.
    """
    place, is_ours = (_copied(folder, root), True) if runtime.world_size == 1 else _copied_once(folder, root)
    try:
        yield place or folder
        runtime.barrier()  # all have read it; a rank that fails waits for nobody
    finally:
        if cleanup and place is not None and is_ours:
            shutil.rmtree(place, ignore_errors=True)
            _tell(f"removed {place}")


def _copied_once(folder: Path, root: Path) -> tuple[Path | None, bool]:
    """The copy that one rank of this machine makes, and whether this rank is the one."""
    with MachineRanks("copying the corpus into memory") as ranks:
        if ranks.is_leader:
            place = _copied(folder, root)
            ranks.tell("" if place is None else str(place))
            return place, True
        told = ranks.told()
        return Path(told) if told else None, False


def _copied(folder: Path, root: Path) -> Path | None:
    """The copy, made if it is not there yet; None with a notice if there can be none."""
    if not root.is_dir():
        _tell(f"this system has no {root}; reading {folder}")
        return None
    manifest = load_manifest(folder)
    home = _own_folder(root)
    if home is None:
        return None
    place = home / f"{folder.resolve().name}-{manifest.fingerprint[:16]}"
    is_there = (place / MANIFEST_FILE).is_file() and load_manifest(place).fingerprint == manifest.fingerprint
    if is_there and manifest.are_files_in(place):
        _tell(f"reading the copy that is there, {place}")
        return place
    needed, free = sum(shard.bytes for shard in manifest.shards), shutil.disk_usage(root).free
    if needed + RESERVE_BYTES > free:
        _tell(
            f"{folder} needs {needed:,} bytes and {RESERVE_BYTES:,} must stay free, but {root} has {free:,}; "
            f"reading the disk. Other copies: {', '.join(sorted(map(str, home.iterdir()))) or 'none'}"
        )
        return None
    _copy(folder, place, manifest)
    _tell(f"copied {needed:,} bytes to {place}")
    return place


def _own_folder(root: Path) -> Path | None:
    """Everybody may write into shared memory, so a folder there counts only if it is ours and closed to others."""
    home = root / f"distillation_data-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    facts = home.lstat()
    if home.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        _tell(f"{home} belongs to somebody else or is open to others; reading the disk")
        return None
    return home


def _copy(folder: Path, place: Path, manifest: Manifest) -> None:
    """All of it under another name first: a copy that was interrupted is never taken for a whole one."""
    unfinished = place.with_name(f".{place.name}.tmp-{os.getpid()}")
    try:
        for name in [*(shard.file for shard in manifest.shards), MANIFEST_FILE]:
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, unfinished / name)
        shutil.rmtree(place, ignore_errors=True)  # there, but damaged
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _tell(text: str) -> None:
    print(f"ram disk: {text}", file=sys.stderr)
