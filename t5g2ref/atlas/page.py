"""Makes the page: one file that loads nothing. What was typed is escaped, and styles have their hash in its policy."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from t5g2ref.atlas.gather import Gathered
from t5g2ref.atlas.places import Place
from t5g2ref.atlas.tokens import visible
from t5g2ref.atlas.view import View
from t5g2ref.atlas.way import columns, groups

TEMPLATES = Path(__file__).resolve().parent / "templates"
MISSING = "the atlas needs Jinja2 and Pillow: pip install 't5g2ref[atlas]'"


def render(found: Gathered, *, title: str, prompt: str, answer: str, tokenizer: Any = None, code: str = "") -> str:
    """The page as HTML.

    Args:
        title: the checkpoint's name.
        prompt, answer: what was asked, and what came of it.
        tokenizer: names the tokens; None gives their ids.
        code: address of the repository's files, as https://…/blob/main, that lines of code link to; "" for none.
    """
    style, view = (TEMPLATES / "atlas.css").read_text(encoding="utf-8"), View(found, tokenizer)
    environment = _environment(checked(code))
    lines = view.code()
    parts = {"columns": columns(found), "groups": groups(found)}
    return str(
        environment.get_template("atlas.html").render(
            view=view, title=title, prompt=prompt, answer=answer, style=_raw(style), policy=_policy(style),
            code=lines, files=found.places.files(), config=found.model.config, dtype=found.model.nx.dtype, **parts,
        )
    )  # fmt: skip


def ready() -> None:
    """ImportError where a library is missing, before the model has run."""
    from importlib.util import find_spec

    if find_spec("jinja2") is None or find_spec("PIL") is None:
        raise ImportError(MISSING)


def checked(code: str) -> str:
    """The address without its last slash. ValueError for what is no http or https address."""
    parts = urlsplit(code)
    if code and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError(f"--code: expected an address such as https://example.org/blob/main, found {code!r}")
    return code.rstrip("/")


def _environment(code: str) -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(MISSING) from error

    def shown(value: Any) -> Any:
        return visible(value, "\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value

    def outside(place: Place) -> str:
        return f"{code}/{quote(place.file)}#L{place.line}" if code else ""

    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters["outside"] = outside
    made.filters["breakable"] = lambda name: Markup("<wbr>").join(_pieces(visible(name)))
    return made


def _pieces(name: str) -> list[str]:
    """A name in pieces that a line may break between."""
    return name.replace(".", ".\0").replace("_", "_\0").replace("/", "/\0").split("\0")


def _raw(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # our own file


def _policy(style: str) -> str:
    """Nothing but this style sheet and pictures that stand in the page."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
