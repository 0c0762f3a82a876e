"""Known deviations: what they excuse, what they may not hide, and when they have stopped being true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conformance.judge.judgement import Judgement
from conformance.measure.finding import Finding
from conformance.report.known import Known, KnownError, load

LINK = "https://example.org/issues/1"
ENTRY = f"""\
[[deviation]]
peer = "port:*"
case = "window*"
tap = "decoder.layers.*.act_fn"
reason = "GELU by a table"
link = "{LINK}"
"""
HERE, DOWN, OTHER = "decoder.layers.1.act_fn", "decoder.layers.1", "decoder.layers.0"


def known(tmp_path: Path, text: str = ENTRY) -> Known:
    path = tmp_path / "known.toml"
    path.write_text(text)
    return load(path)


def found(tap: str, status: str = "pass", call: int = 0) -> Finding:
    return Finding(tap, call, status, judged=1.0)


def judgement(*local: Finding, cumulative: tuple[Finding, ...] = (), case: str = "window", **fields: str) -> Judgement:
    return Judgement("port:fast", case, list(local), list(cumulative), **fields)  # type: ignore[arg-type]


FAULTY = judgement(found(OTHER), found(HERE, "values"), found(DOWN))
CLEAN = judgement(found(OTHER), found(HERE), found(DOWN))


def state(entries: Known) -> str:
    (entry,) = entries.states()
    return str(entry["state"])


def test_it_is_excused_with_its_reason(tmp_path: Path) -> None:
    entries = known(tmp_path)
    assert state(entries) == "not run"
    applied = entries.applied(FAULTY, {})
    assert applied.known == f"GELU by a table ({LINK})"
    assert not applied.deviates
    assert FAULTY.deviates
    assert state(entries) == "seen"
    (entry,) = entries.states()
    assert entry == {
        "peer": "port:*",
        "case": "window*",
        "tap": "decoder.layers.*.act_fn",
        "status": "",
        "reason": "GELU by a table",
        "link": LINK,
        "versions": {},
        "state": "seen",
    }


@pytest.mark.parametrize(
    "other",
    [
        replace(FAULTY, peer="other"),
        replace(FAULTY, case="short"),
        judgement(found(OTHER, "values"), found(HERE, "values")),  # another fault besides
        judgement(found(HERE, "values"), found(DOWN, "nan")),
        judgement(found(OTHER), found(HERE), found(DOWN, "values")),
        replace(FAULTY, error="RuntimeError: and then it fell over"),
        replace(FAULTY, exact=[found("weights", "exact")]),
        judgement(found(OTHER), found(HERE, "values"), cumulative=(found(OTHER, "values"), found(DOWN, "values"))),
    ],
)
def test_nothing_else_is_excused(tmp_path: Path, other: Judgement) -> None:
    entries = known(tmp_path)
    assert entries.match(other, {}) is None
    assert entries.applied(other, {}) is other


def test_what_follows_from_it_is_excused(tmp_path: Path) -> None:
    later = judgement(
        found(OTHER), found(HERE, "values"), found(DOWN), cumulative=(found(OTHER), found(DOWN, "values"))
    )
    assert known(tmp_path).match(later, {}) is not None


def test_two_entries_cover_two_faults(tmp_path: Path) -> None:
    both = judgement(found(OTHER, "values"), found(HERE, "values"))
    entries = known(tmp_path, ENTRY + ENTRY.replace("decoder.layers.*.act_fn", OTHER).replace("GELU", "norm"))
    entry = entries.match(both, {})
    assert entry is not None
    assert entry.reason == "norm by a table"
    assert [e["state"] for e in entries.states()] == ["seen", "seen"]


def test_a_status_narrows_it(tmp_path: Path) -> None:
    entries = known(tmp_path, ENTRY + 'status = "nan"\n')
    assert entries.match(FAULTY, {}) is None
    assert state(entries) == "not run"
    assert entries.match(judgement(found(HERE, "nan")), {}) is not None


def test_an_unexpected_pass(tmp_path: Path) -> None:
    entries = known(tmp_path)
    assert entries.applied(CLEAN, {}) is CLEAN
    assert state(entries) == "unexpected pass"
    entries.applied(FAULTY, {})  # on another case it is there
    assert state(entries) == "seen"


def test_its_tap_passes_beside_another_fault(tmp_path: Path) -> None:
    entries = known(tmp_path)
    entries.match(judgement(found(OTHER, "values"), found(HERE)), {})
    assert state(entries) == "unexpected pass"


@pytest.mark.parametrize(
    "other",
    [
        replace(CLEAN, case="short"),
        replace(CLEAN, peer="other"),
        replace(CLEAN, error="it raised"),
        replace(CLEAN, skipped="not today"),
        judgement(found(OTHER)),
    ],
)
def test_what_does_not_count_as_a_pass(tmp_path: Path, other: Judgement) -> None:
    entries = known(tmp_path)
    entries.match(other, {})
    assert state(entries) == "not run"


@pytest.mark.parametrize(
    ("versions", "there"),
    [
        ({"port": "2.3"}, True),
        ({"port": "2.3+cu128"}, True),
        ({"port": "2.4rc1"}, True),
        ({"port": "2.5"}, False),
        ({"port": "off"}, False),
        ({}, False),
    ],
)
def test_versions(tmp_path: Path, versions: dict[str, str], there: bool) -> None:
    entries = known(tmp_path, ENTRY + 'versions = { port = ">=2.1,<2.5" }\n')
    assert (entries.match(FAULTY, versions) is not None) is there
    entries = known(tmp_path, ENTRY + 'versions = { port = ">=2.1,<2.5" }\n')
    entries.match(CLEAN, versions)
    assert state(entries) == ("unexpected pass" if there else "not run")


@pytest.mark.parametrize("version", ["no version", "1" * 5000, ""])
def test_a_version_that_is_none_fits_nothing(tmp_path: Path, version: str) -> None:
    entries = known(tmp_path, ENTRY + 'versions = { port = ">=2.1" }\n')
    assert not entries.applied(FAULTY, {"port": version}).known


def test_without_a_file_nothing_is_known() -> None:
    assert Known().applied(FAULTY, {}) is FAULTY
    assert Known().states() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one [[deviation]]"),
        ("deviation = 3", "expected at least one [[deviation]]"),
        ("deviation = [3]", "deviation 1 is 3, expected a table"),
        ("[[deviation]\n", "not TOML"),
        ('title = "x"\n' + ENTRY, "has 'title', expected nothing but [[deviation]]"),
        (ENTRY.replace("link =", "links ="), "deviation 1: has 'links', expected only peer, case, tap, reason, link"),
        (ENTRY.replace(f'link = "{LINK}"', ""), "deviation 1: link is missing"),
        (ENTRY + ENTRY.replace('reason = "GELU by a table"', ""), "deviation 2: reason is missing"),
        (ENTRY.replace('"window*"', "3"), "deviation 1: case is 3, expected a line of text"),
        (ENTRY.replace('"GELU by a table"', '""'), "reason is '', expected a line of text"),
        (ENTRY.replace("GELU", "\\u001b[1m"), "reason is '\\x1b[1m by a table'"),
        (ENTRY.replace("https", "javascript"), "expected an address that begins with https:// or http://"),
        (ENTRY + 'status = "bad"\n', "status is 'bad', expected one of missing, shape"),
        (
            ENTRY + 'status = "skipped"\n',
            "tap is 'decoder.layers.*.act_fn', expected none: a case is skipped as a whole",
        ),
        (ENTRY.replace('tap = "decoder.layers.*.act_fn"\n', ""), "tap is missing, expected each of peer, case, tap,"),
        (ENTRY + 'versions = "1.0"\n', "versions is '1.0', expected a table"),
        (ENTRY + 'versions = { port = "about 2" }\n', "versions.port is 'about 2', expected a specifier"),
        (ENTRY + "versions = { port = 2 }\n", "versions.port is 2, expected a specifier"),
        (ENTRY + f'versions = {{ port = "{"=" * 9000}" }}\n', "expected a specifier such as"),
        ("a" + ".a" * 300_000 + " = 1", "a line has 300000 dots, expected at most 200"),
        ("deviation = " + "[" * 200 + "]" * 200, "deviation 1 is [[[[[...]]]]], expected a table"),
        ("deviation = " + "[" * 9000 + "]" * 9000, "not TOML: "),
        (ENTRY.replace("GELU", "x" * 900_000), "expected a line of text"),
        (ENTRY.replace('"window*"', "0x" + "f" * 5000), "case is an integer of 20000 bits, expected a line of text"),
        (ENTRY * 501, "has 501 deviations, expected at most 500"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(KnownError) as raised:
        known(tmp_path, text)
    assert message in str(raised.value)
    assert str(tmp_path / "known.toml") in str(raised.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match="cannot be read: No such file"):
        load(tmp_path / "nowhere.toml")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(KnownError, match="larger than 1048576 bytes"):
        load(tmp_path / "large")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(KnownError, match="not TOML"):
        load(tmp_path / "binary")


@pytest.mark.parametrize("status", ["missing", "shape", "dtype", "nan"])
def test_what_is_not_there_is_excused_by_name_alone(tmp_path: Path, status: str) -> None:
    fault = judgement(found(HERE, status))
    assert known(tmp_path).applied(fault, {}).deviates
    assert not known(tmp_path, ENTRY + f'status = "{status}"\n').applied(fault, {}).deviates


@pytest.mark.parametrize("tap", ["*", "decoder.*", "decoder.layers.*", "*.*.*.*.act_fn", "decoder.layers.*.*.act_fn"])
def test_a_star_stands_for_one_part(tmp_path: Path, tap: str) -> None:
    entries = known(tmp_path, ENTRY.replace("decoder.layers.*.act_fn", tap))
    assert entries.applied(FAULTY, {}).deviates


def test_what_is_unclear_stays_so(tmp_path: Path) -> None:
    assert not known(tmp_path).applied(replace(FAULTY, unclear=["logits"]), {}).known


def test_a_tap_that_no_checkpoint_has(tmp_path: Path) -> None:
    from dumping import tiny

    entry = ENTRY.replace("decoder.layers.*.act_fn", "decoder.layers.*.mlp.act_fn")
    known(tmp_path, entry).check([tiny()])
    known(tmp_path, entry.replace("decoder.layers.*.mlp.act_fn", "weights.decoder.norm.weight")).check([tiny()])
    with pytest.raises(KnownError, match=r"deviation 1: 'decoder\.layer\..*' is no tap of this"):
        known(tmp_path, entry.replace("layers", "layer")).check([tiny()])


# Skips

SKIP = ENTRY.replace('tap = "decoder.layers.*.act_fn"', 'status = "skipped"').replace("GELU by a table", "text only")
SKIPPING = judgement(skipped="no windows yet")


def test_a_known_skip_is_excused_and_not_judged(tmp_path: Path) -> None:
    entries = known(tmp_path, SKIP)
    applied = entries.applied(SKIPPING, {})
    assert applied.known == f"text only ({LINK})"
    assert (applied.passed, applied.deviates, state(entries)) == (False, False, "seen")
    assert not known(tmp_path, ENTRY).applied(SKIPPING, {}).known, "an entry of a tap excuses no skip"
    for other in (replace(SKIPPING, peer="other"), replace(SKIPPING, case="short")):
        assert not known(tmp_path, SKIP).applied(other, {}).known
    assert not known(tmp_path, SKIP + 'versions = { port = "<2" }\n').applied(SKIPPING, {"port": "2.1"}).known


@pytest.mark.parametrize("run", [CLEAN, FAULTY])
def test_a_known_skip_that_did_not_occur(tmp_path: Path, run: Judgement) -> None:
    entries = known(tmp_path, SKIP)
    assert entries.applied(run, {}) is run, "it excuses no failure"
    assert state(entries) == "unexpected pass"
    entries.applied(SKIPPING, {})  # another case of the pattern is skipped
    assert state(entries) == "seen"


def test_a_known_skip_of_a_case_that_raised_is_open(tmp_path: Path) -> None:
    entries = known(tmp_path, SKIP)
    entries.applied(judgement(error="RuntimeError: no kernel"), {})
    assert state(entries) == "not run"


def test_the_verdict_says_what_a_known_skip_left_out(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="needs rich: the report is printed with it")
    from conformance.report import text
    from conformance.report.result import Result

    entries = known(tmp_path, SKIP)
    found = [("tiny", entries.applied(j, {})) for j in (replace(CLEAN, case="short"), SKIPPING)]
    result = Result(found, {}, {}, {}, 2, 21, known=entries.states())
    assert (result.status, result.last_line()) == (
        0,
        "VERDICT: CONFORMS; known and not judged: window (on 2 of 21 cases)",
    )
    told = "".join(t.plain for t in text._unjudged([f for f in found if f[1].skipped], 100))
    assert "port:fast was not judged, as is known, on 1 case of tiny" in told
    assert f"known           text only ({LINK})" in told
    assert f"known skip, seen: text only ({LINK})" in text._summary(result, 100).plain
    unknown = replace(result, judgements=[found[0], ("tiny", SKIPPING)])
    assert unknown.last_line() == (
        "VERDICT: INCOMPLETE (on 2 of 21 cases) - port:fast skips case window: no windows yet"
    )


def test_nothing_but_known_skips_is_no_verdict(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="needs rich: the report is printed with it")
    from conformance.report.result import Result

    skipped = known(tmp_path, SKIP).applied(SKIPPING, {})
    result = Result([("tiny", skipped), ("tiny", replace(CLEAN, peer="other"))], {}, {}, {}, 1, 1)
    told = "VERDICT: INCOMPLETE; known and not judged: window - port:fast was judged on nothing"
    assert (result.status, result.last_line()) == (3, told)


def test_a_known_skip_that_is_gone_is_incomplete(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="needs rich: the report is printed with it")
    from conformance.report.result import Result

    entries = known(tmp_path, SKIP)
    entries.applied(CLEAN, {})
    result = Result([("tiny", CLEAN)], {}, {}, {}, 1, 1, known=entries.states())
    assert result.last_line() == "VERDICT: INCOMPLETE - a known skip is no longer seen: text only"


def test_a_skip_of_a_case_that_no_checkpoint_has(tmp_path: Path) -> None:
    from dumping import tiny

    known(tmp_path, SKIP).check([tiny()])
    with pytest.raises(KnownError, match=r"deviation 1: 'windo' is no case of this checkpoint; close: window"):
        known(tmp_path, SKIP.replace("window*", "windo")).check([tiny()])
