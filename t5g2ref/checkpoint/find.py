"""Which checkpoint a name means: a path, a size, or a repository of the Hub. Nothing is put in another's place."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from t5g2ref.checkpoint.fetch import Progress
from t5g2ref.checkpoint.refusal import NoDownload, NotFound
from t5g2ref.checkpoint.write import INDEX, SINGLE

SIZES = {size: f"google/t5gemma-2-{size}-{size}" for size in ("270m", "1b", "4b")}
MAIN = "main"
_REPO = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class Found:
    """A checkpoint on this disk: a folder, or one .safetensors file with config.json beside it.

    `origin` is the repository and the commit that it came from; "" for a path.
    """

    place: Path
    origin: str = ""


def variable(size: str) -> str:
    """Name of the environment variable that points to a size's folder."""
    return f"T5G2REF_{size.upper()}"


def find(name: str, progress: Progress = lambda *_: None, *, names: str = "", beside: tuple[str, ...] = ()) -> Found:
    """The checkpoint: path, environment variable, Hugging Face cache, download, the first of them that has it.

    Args:
        name: a folder, a .safetensors file, a size of SIZES, OWNER/REPO or OWNER/REPO@REVISION.
        progress: called with (file, bytes, bytes of all) during a download.
        names: what else the caller knows, for the message about an unknown name.
        beside: files that the caller needs too, such as tokenizer.json. One that a whole checkpoint in the cache lacks
            is downloaded, of the same commit; a repository need not have it.

    Raises:
        NotFound: it is not to be had; with every remedy.
    """
    if os.path.exists(name):  # of `Path` a name of any length raises
        return Found(_path(name, name))
    if name in SIZES and (given := os.environ.get(variable(name))):
        if not Path(given).exists() or (Path(given).is_dir() and not Path(given, "config.json").is_file()):
            raise NotFound(name, f"{variable(name)} is {given!r}, where there is no config.json", "set it to a folder")
        return Found(_path(name, given))
    match = _REPO.fullmatch(SIZES.get(name, name))
    if match is None or ".." in name:
        known = ", ".join([*([names] if names else []), *SIZES])
        remedy = f"give {known}, a folder, a .safetensors file or OWNER/REPO[@REVISION]"
        raise NotFound(name, "no such folder, and not a name I know", remedy)
    return _of_hub(name, match["repo"], match["revision"] or MAIN, progress, beside)


def home(place: Path) -> Path:
    """The folder that holds what lies beside the weights."""
    return place if place.is_dir() else place.parent


def _path(name: str, given: str) -> Path:
    """A folder as it is; a file of weights as its folder where that means the same."""
    path = Path(given)
    if path.is_dir():
        return path
    if path.suffix != ".safetensors":
        raise NotFound(name, "this is a file, expected a folder or a .safetensors file", "give the checkpoint's folder")
    if not (path.parent / "config.json").is_file():
        raise NotFound(name, "there is no config.json beside it", "put it there")
    if _SHARD.fullmatch(path.name) and (path.parent / INDEX).is_file():
        raise NotFound(name, "this is one shard of several", f"give its folder, {path.parent}")
    return path.parent if path.name == SINGLE else path


def _of_hub(name: str, repo: str, revision: str, progress: Progress, beside: tuple[str, ...]) -> Found:
    lacks, what = "not in the cache", "the weights"
    try:
        from t5g2ref.checkpoint.hub import cached, download, lacking

        if (folder := cached(repo, revision)) is not None:
            lacks = f"the cache lacks {missing}" if (missing := lacking(folder)) else ""
        if folder is None or lacks:
            folder = download(repo, revision, progress)
        elif absent := next((file for file in beside if not (folder / file).is_file()), ""):
            lacks, what = f"the cache lacks {absent}", absent
            folder = download(repo, folder.name, progress)
    except ImportError:
        none = NoDownload("huggingface_hub is not installed", 'pip install "t5g2ref[hub]"', f"hf download {repo}")
        raise _refused(name, repo, none, "", what) from None
    except NoDownload as error:
        raise _refused(name, repo, error, lacks, what) from error
    return Found(folder, f"{repo} at commit {folder.name}")


def _refused(name: str, repo: str, error: NoDownload, lacks: str, what: str) -> NotFound:
    no_path = "" if name in SIZES else "no such folder"
    why = "; ".join(part for part in (no_path, lacks, error.why) if part)
    here = [f"set {variable(name)} to a folder with config.json and model.safetensors"] if name in SIZES else []
    remedies = (*error.remedies, *here, "give a folder that has it: /path/to/folder")
    are = "are" if what == "the weights" else "is"
    return NotFound(name, f"{what} of {repo} {are} not here ({why})", *remedies)
