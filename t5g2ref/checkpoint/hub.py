"""Checkpoints of the Hugging Face Hub: in its cache where they are whole there, else downloaded into it.

The cache is huggingface_hub's, as it documents it: `blobs` by hash, `snapshots/<commit>` of links, and `refs`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5g2ref.checkpoint.fetch import Progress, Remote, begun, fetch
from t5g2ref.checkpoint.opened import read_index
from t5g2ref.checkpoint.refusal import NoDownload, plainly
from t5g2ref.checkpoint.tensor import WeightsError
from t5g2ref.checkpoint.write import INDEX, SINGLE
from t5g2ref.files import replacing, write_text

CONFIG = "config.json"
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def cached(repo: str, revision: str) -> Path | None:
    """The snapshot's folder in the cache, whole or not: see `lacking`. The network is not asked."""
    from huggingface_hub import try_to_load_from_cache

    with _plain_errors(repo, revision):
        found = try_to_load_from_cache(repo, CONFIG, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def lacking(folder: Path) -> str:
    """A file without which the checkpoint is not whole; "" for one that is."""
    if not (folder / CONFIG).is_file():
        return CONFIG
    if (folder / SINGLE).is_file():
        return ""
    if not (folder / INDEX).is_file():
        return SINGLE
    try:
        shards = sorted(set(read_index(folder / INDEX).values()))
    except WeightsError:
        return INDEX
    return next((shard for shard in shards if not (folder / shard).is_file()), "")


def download(repo: str, revision: str, progress: Progress) -> Path:
    """The snapshot's folder, after what it lacks was downloaded. NoDownload says why not."""
    with _plain_errors(repo, revision):
        snapshot = _listed(repo, revision)
        for name in (CONFIG, *BESIDE, INDEX):
            if name in snapshot.files:
                snapshot.take(name, progress)
        weights = _weights(snapshot)
        snapshot.require_room(weights)
        for name in weights:
            snapshot.take(name, progress)
        snapshot.name(revision)
    return snapshot.folder


@dataclass(frozen=True)
class _Snapshot:
    """A commit of a repository: its files on the Hub, and where they go in the cache."""

    home: Path
    locks: Path
    commit: str
    files: dict[str, Remote]

    @property
    def folder(self) -> Path:
        return self.home / "snapshots" / self.commit

    def take(self, name: str, progress: Progress) -> None:
        """Download the file where it is not here, and give it its name in the snapshot."""
        (self.home / "blobs").mkdir(parents=True, exist_ok=True)
        blob = fetch(self.files[name], self.home / "blobs", self.locks, progress)
        self.folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / name
        with replacing(link) as made:
            try:
                made.symlink_to(os.path.relpath(blob, link.parent))
            except OSError:  # a disk or a Windows without them
                shutil.copyfile(blob, made)

    def require_room(self, names: list[str]) -> None:
        """NoDownload where the disk has no room for what these files still lack."""
        remotes = [self.files[name] for name in names]
        needed = sum(remote.size - begun(remote, self.home / "blobs") for remote in remotes)
        if needed > (free := shutil.disk_usage(self.home).free):
            why = f"it needs {needed:,} bytes more, {self.home} has {free:,} free"
            raise NoDownload(why, "make room there", "set HF_HOME to a folder on a larger disk")

    def name(self, revision: str) -> None:
        """Let the revision mean this commit, once all of it is here."""
        if revision != self.commit:
            ref = self.home / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_text(ref, self.commit)


def _listed(repo: str, revision: str) -> _Snapshot:
    """The commit that the revision means, as the Hub lists it. Hashes become names of files: they are looked at."""
    from huggingface_hub import HfApi, constants, hf_hub_url

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = {}
    for file in info.siblings or []:
        size, digest = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, file.blob_id)
        if size is not None and _HASH.fullmatch(digest or ""):
            url = hf_hub_url(repo, file.rfilename, revision=info.sha)
            files[file.rfilename] = Remote(file.rfilename, url, size, str(digest))
    if not _HASH.fullmatch(info.sha or "") or CONFIG not in files:
        raise NoDownload(f"the Hub lists no {CONFIG} for it", "give the repository of a checkpoint")
    name = "--".join(["models", *repo.split("/")])
    cache = Path(constants.HF_HUB_CACHE)
    return _Snapshot(cache / name, cache / ".locks" / name, str(info.sha), files)


def _weights(snapshot: _Snapshot) -> list[str]:
    """The files of weights: one, or the shards that the index names, which has been downloaded."""
    if SINGLE in snapshot.files:
        return [SINGLE]
    if INDEX not in snapshot.files:
        raise NoDownload(f"it has neither {SINGLE} nor {INDEX}", "give the repository of a checkpoint in safetensors")
    shards = sorted(set(read_index(snapshot.folder / INDEX).values()))
    if absent := [shard for shard in shards if shard not in snapshot.files]:
        raise NoDownload(f"{INDEX} names {absent[0]}, which the repository lacks", "tell its owner")
    return shards


@contextmanager
def _plain_errors(repo: str, revision: str) -> Iterator[None]:
    """Errors of the library, its network and the disk come out as NoDownload; what is ours goes through."""
    from huggingface_hub.errors import HFValidationError, HTTPError

    foreign: tuple[Any, ...] = (HTTPError, HFValidationError, OSError)
    try:
        yield
    except WeightsError as error:
        raise NoDownload(str(error), "tell the repository's owner") from error
    except foreign as error:
        raise plainly(error, repo, revision) from error
