"""The text: that its numbers are the code's, its examples work, and every place that points into it exists."""

from __future__ import annotations

import argparse
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="needs rich: its Markdown is printed with it")

from conformance.commands import explain as command
from conformance.defects.catalogue import DEFECTS
from conformance.errors import UsageError
from conformance.measure import limits
from conformance.measure.limits import LIMITS
from conformance.report import explain, known
from conformance.report.document import STATUSES

SOURCE = explain.TEXT.read_text(encoding="utf-8")
TEXT = " ".join(SOURCE.split())
TEMPLATES = explain.TEXT.parent / "html" / "templates"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    assert command.main(parser.parse_args(list(arguments))) == 0
    return capsys.readouterr().out


def test_all_of_it_one_topic_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys) == SOURCE
    ratio = told(capsys, "the-ratio")
    assert ratio.startswith("## The ratio\n")
    assert ratio.count("\n## ") == 0
    assert told(capsys, "The Ratio") == ratio
    listed = [line.split()[0] for line in told(capsys, "--list").splitlines()]
    assert listed == list(explain.sections())


def test_a_topic_may_be_shortened_and_an_unknown_one_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "known").startswith("## Known deviations")
    with pytest.raises(UsageError, match=r"did you mean signatures\?"):
        told(capsys, "signiture")
    with pytest.raises(UsageError, match="did you mean the-ratio or the-float32-lane"):
        told(capsys, "the")
    with pytest.raises(UsageError, match="--list"):
        told(capsys, "")


def test_in_a_terminal_it_is_laid_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out = told(capsys, "signatures")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert "##" not in plain
    assert "Signatures" in plain
    assert max(map(len, plain.splitlines())) <= 80


def test_the_text_is_versioned_and_of_a_size_to_be_read() -> None:
    assert explain.version() == "2"
    lines = SOURCE.splitlines()
    assert 300 <= len(lines) <= 600
    assert all(len(line) <= 120 or line.startswith("|") or "<https://" in line for line in lines)


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"The limit is **{LIMITS['local']:g}**" in TEXT
    assert f"Mistakes in formulas are at {limits.DEFECT:g} and up" in TEXT
    assert f"between 1 and **{LIMITS['half']:g}**" in TEXT
    assert f"{limits.BOOTSTRAP_TOKENS} at a time" in TEXT
    assert f"largest of {limits.BOOTSTRAP_DRAWS} draws" in TEXT
    assert f"above {limits.BIAS:g} plus six standard errors" in TEXT
    assert limits.BIAS_ERRORS == 6
    assert limits.UNCLEAR_ERROR == limits.ROUNDING_FLOOR == 0.25
    assert "off by a quarter of the value" in TEXT
    low, high = limits.PATTERN_AKIN
    assert (
        f"c is at least {limits.PATTERN_POWER:g} standard errors from 0; 1 lies within {limits.PATTERN_NEAR:g}" in TEXT
    )
    assert f"A sure c between {low:g} and {high:g}" in TEXT
    assert f"at least {limits.PATTERN_PART:g} and {limits.PATTERN_POWER:g} standard errors beyond" in TEXT
    assert f"fewer than {limits.CLUSTERS} tokens say nothing" in TEXT
    assert limits.PATTERN_LEFT == 0.25
    assert "a quarter of what the peer has above" in TEXT
    assert f"below {limits.PATTERN_POWER:g} its absence is not claimed" in TEXT


def test_every_status_is_explained() -> None:
    assert [status for status in STATUSES if status not in TEXT] == []


def test_the_example_of_a_known_deviation_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", SOURCE, re.DOTALL)
    path = tmp_path / "known.toml"
    path.write_text(example, encoding="utf-8")
    (entry,) = known.load(path).entries
    assert entry.versions == {"transformers": ">=5.20,<5.24"}


def test_the_page_points_at_topics_that_are_there() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.html")))
    wanted = set(re.findall(r'help\("([a-z0-9-]+)"', pages))
    assert len(wanted) >= 8
    assert wanted <= set(explain.sections())


def test_as_html_it_has_anchors_and_no_foreign_markup() -> None:
    tags: dict[str, list[dict[str, str | None]]] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.setdefault(tag, []).append(dict(attrs))

    Reader().feed(explain.as_html())
    assert [a["id"] for a in tags["h3"]] == [f"explain-{topic}" for topic in explain.sections()]
    assert all(str(a["href"]).startswith("https://") and a["rel"] for a in tags["a"])
    assert not {"script", "img", "style", "h2"} & set(tags)


@pytest.mark.parametrize(("heading", "topic"), [("Two anchors", "two-anchors"), ("If you: think?", "if-you-think")])
def test_slug(heading: str, topic: str) -> None:
    assert explain.slug(heading) == topic


def test_a_defect_is_a_topic(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "d69")
    assert out.startswith(f"## D69 {DEFECTS['D69']}\n")
    assert "Seen in unslothai/unsloth-zoo#635." in out
    assert "shows in case `" in out
    assert "selftest --fault 'D69*'" in out


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_every_defect_has_a_way_to_be_seen(defect: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\n* " in told(capsys, defect)
