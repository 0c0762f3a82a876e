"""A checkpoint that is not to be had: why not, and what helps, in words for somebody in a hurry."""

from __future__ import annotations

from typing import Any

from t5g2ref.config.fields import short

LONGEST = 200  # characters of a name that is shown as it is
AGAIN = "give the command again: it goes on where it stopped"


class NotFound(ValueError):
    """A checkpoint that is not to be had; `remedies` has a line for each way out."""

    def __init__(self, name: str, reason: str, *remedies: str) -> None:
        name = name if name.isprintable() and len(name) <= LONGEST else short(name)  # a line of our own
        lines = [f"{name}: {reason}. Any of these helps:", *(f"  - {remedy}" for remedy in remedies)]
        super().__init__("\n".join(lines) if len(remedies) > 1 else f"{name}: {reason}; {remedies[0]}")
        self.name, self.reason, self.remedies = name, reason, remedies


class NoDownload(Exception):
    """Why a repository's files did not come, and what to do about it."""

    def __init__(self, why: str, *remedies: str) -> None:
        super().__init__(why)
        self.why, self.remedies = why, remedies


def plainly(error: Exception, repo: str, revision: str) -> NoDownload:
    """What an error of huggingface_hub, of its network or of the disk means for this repository."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline(repo, page)
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(error, errors, revision, page)
    if isinstance(error, errors.HFValidationError):
        return NoDownload("the Hub has no such names", "give OWNER/REPO or OWNER/REPO@REVISION")
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or constants.HF_HUB_CACHE
        return NoDownload(f"{where}: {error.strerror}", "make room there or set HF_HOME to another folder", AGAIN)
    said = f"{type(error).__name__}: {(str(error) or 'no more is known').splitlines()[0]}"
    return NoDownload(f"{constants.ENDPOINT} cannot be reached: {said}", "look at the network", AGAIN)


def _offline(repo: str, page: str) -> NoDownload:
    return NoDownload(
        "HF_HUB_OFFLINE is set",
        f"where there is a network: accept the licence at {page}, then: hf auth login, and\n      hf download {repo}",
        "unset HF_HUB_OFFLINE, and it is downloaded",
    )


def _answered(error: Any, errors: Any, revision: str, page: str) -> NoDownload:
    """What the Hub's own answer means. The gated come first: to the library they are a kind of the missing."""
    status, login = error.response.status_code, "hf auth login, with a token that may read it"
    if isinstance(error, errors.GatedRepoError):
        return NoDownload("gated: its licence is not accepted", f"accept the licence at {page}, then: hf auth login")
    if isinstance(error, errors.RevisionNotFoundError):
        return NoDownload(
            f"the Hub has no revision {revision!r} of it", f"give a branch, a tag or a commit: {page}/commits/main"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NoDownload(
            "the Hub has no such repository, or a private one", f"look at {page}", f"if it is private: {login}"
        )
    if isinstance(error, errors.DisabledRepoError):
        return NoDownload("the Hub has disabled it", f"look at {page}")
    if status == 401:
        return NoDownload("the Hub refuses the token", f"{login}; or unset HF_TOKEN")
    if status == 403:
        return NoDownload("the token has no right to it", login)
    if status == 404:
        return NoDownload("the Hub lists a file that it does not have", f"look at {page}/tree/main")
    return NoDownload(f"the Hub answers {status}", AGAIN, f"look at {page}")
