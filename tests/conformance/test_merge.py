"""`--shard I/N` and `merge`: the verdict of one process, or one line that says why there is none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rich", reason="needs rich: the report is made with it")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from sharing import MANY, command, told, verdict

from conformance.commands.merged_result import merged_result
from conformance.errors import UsageError
from conformance.exchange.plain import PlainError, encoded
from conformance.judge.evidence import MOST_NUMBERS
from conformance.report.terms import Asked, Work
from conformance.sweep.header import header_of
from conformance.sweep.kept import MOST_BYTES, _object, line_of, read
from conformance.sweep.merging import merged
from conformance.sweep.record import read as read_record
from conformance.sweep.record import written
from conformance.sweep.share import Share, missing, parse, part
from t5g2ref.config.fields import MAX_SIZE

Lines = list[Any]
CASES = ("short", "eoi", "padded-left-cached")
PEERS = ("window", "half", "box", "loud")


class Runs:
    """One run in this process, and the same in two shards; `few` is a healthy one, for files that are spoilt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "many.py").write_text(MANY)
        self.asked = [f"--peer={folder}/many.py:{peer}" for peer in PEERS] + [f"--case={case}" for case in CASES]
        self.asked.append("--ckpt=tiny-even")
        self.whole = command(*self.asked, "--json", folder / "whole.json")
        self.parts = [folder / f"{i}.json" for i in (1, 2)]
        self.shares = [command(*self.asked, f"--shard={i}/2", "--json", self.parts[i - 1]) for i in (1, 2)]
        self.few = [self.shard(i, folder / f"few{i}.json") for i in (1, 2)]

    def shard(self, number: int, path: Path, *more: str, of: int = 2) -> Path:
        asked = more or ("--peer=t5g2ref:numpy:float32", "--ckpt=tiny-released", "--lane=fp32")
        status, _, err = command(*asked, "--case=short", "--case=eoi", f"--shard={number}/{of}", "--json", path)
        assert status in (0, 3), err  # 3 of a known skip that is not seen
        return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("shards"))


def spoilt(runs: Runs, folder: Path, change: Callable[[Lines], Any], number: int = 2) -> list[Path]:
    """The files of `few`, the second with its lines changed."""
    lines = [json.loads(line) for line in runs.few[number - 1].read_text().splitlines()]
    for line in lines:
        del line["sum"]
    change(lines)
    (folder / "spoilt.json").write_text("".join(map(line_of, lines)))  # the sums are right again
    return [runs.few[2 - number], folder / "spoilt.json"]


def refused(*files: Path) -> str:
    """The one line that says why nothing was merged."""
    status, out, err = command("merge", *files)
    assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err)
    assert err.startswith("conformance: ")
    return err


# The same verdict


def test_shards_give_the_verdict_of_one_process(runs: Runs, tmp_path: Path) -> None:
    """Broken by anything that is computed over all comparisons from what a shard has: patterns pooled over cases,
    exposure, steadiness, warnings, the diagnosis of a black box."""
    status, out, err = command("merge", *reversed(runs.parts), "--json", tmp_path / "merged.json")
    assert err == ""
    assert status == runs.whole[0] == 1
    assert verdict(tmp_path / "merged.json") == verdict(runs.folder / "whole.json")
    assert told(out) == told(runs.whole[1])
    whole = json.loads((runs.folder / "whole.json").read_text())
    assert [d["found"] for d in whole["diagnoses"]] == [[["D46"]]]  # so that what is equal is not empty
    assert [j["case"] for j in whole["judgements"] if j["case"] == "together"]


def test_a_lone_shard_is_no_whole_run(runs: Runs) -> None:
    for number, (status, out, _) in enumerate(runs.shares, 1):
        assert status == 1
        assert f"(shard {number}/2: 8 of 16 comparisons)" in out.splitlines()[-1]


def test_generation_is_merged_and_so_are_shards_of_several_processes(runs: Runs, tmp_path: Path) -> None:
    asked = (f"--peer={runs.folder}/many.py:speaking", "--lane=generate", "--case=generate*", "--ckpt=tiny-even")
    few = ("--case=generate-stop", "--case=generate-second", *asked[:2], asked[3])
    command(*few, "--json", tmp_path / "whole.json")
    command(*few, "--shard=1/2", "--json", tmp_path / "1.json", "--jobs=2")
    command(*few, "--shard=2/2", "--json", tmp_path / "2.json")
    status, _, err = command("merge", tmp_path / "1.json", tmp_path / "2.json", "--json", tmp_path / "merged.json")
    assert (status, err) == (1, "")
    assert verdict(tmp_path / "merged.json") == verdict(tmp_path / "whole.json")


def test_every_kind_of_report_is_written(runs: Runs, tmp_path: Path) -> None:
    kinds = ("json", "junit", "html", "markdown", "badge")
    status, _, err = command("merge", *runs.parts, "--detail", *(f"--{k}={tmp_path / k}" for k in kinds))
    assert (status, err) == (1, "")
    assert all((tmp_path / kind).stat().st_size for kind in kinds)


def test_known_deviations_are_those_of_the_shards(runs: Runs, tmp_path: Path) -> None:
    known = tmp_path / "known.toml"
    known.write_text('[[deviation]]\npeer = "*"\ncase = "eoi"\nstatus = "skipped"\nreason = "r"\nlink = "https://x"\n')
    asked = ("--peer=t5g2ref:numpy:float32", "--ckpt=tiny-released", "--lane=fp32", f"--known={known}")
    files = [runs.shard(i, tmp_path / f"{i}.json", *asked) for i in (1, 2)]
    assert "--known is missing: the shards were judged with another file" in refused(*files)
    status, out, _ = command("merge", *files, f"--known={known}")
    assert status == 3  # the skip is not seen, which the merged report says
    assert "a known skip is no longer seen" in out
    status, out, err = command("merge", *runs.few, f"--known={known}")
    assert (status, out) == (2, "")
    assert "were judged with no known deviations" in err


@pytest.mark.peer
def test_shards_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("torch")  # before a limit is set on the threads of the libraries that are there
    asked = ("--peer=transformers:sdpa", "--case=short", "--case=eoi", "--case=image", "--lane=exact", "--lane=fp32")
    command(*asked, "--json", tmp_path / "whole.json")
    for i in (1, 2):
        command(*asked, f"--shard={i}/2", "--json", tmp_path / f"{i}.json")
    status, _, err = command("merge", tmp_path / "1.json", tmp_path / "2.json", "--json", tmp_path / "merged.json")
    assert (status, err) == (0, "")
    assert verdict(tmp_path / "merged.json") == verdict(tmp_path / "whole.json")


# The cut


@pytest.mark.parametrize("of", [1, 2, 3, 7, 50])
def test_every_comparison_is_in_one_share(runs: Runs, of: int) -> None:
    work = read(runs.parts[0]).work
    shares = [part(work, Share(i, of)) for i in range(1, of + 1)]
    assert sorted(one for share in shares for one in share) == sorted(work.every)
    assert len(work.every) == 16
    assert all(share == [one for one in work.every if one in share] for share in shares)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/2/3", "a/b", "1/100000", "٣/٤", "-1/2", ""])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="expected I/N"):
        parse(text)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ((), "give --json FILE, which merge reads"),
        (("--json=a.json", "--html=b.html"), "leave out --html, which merge writes"),
    ],
)
def test_a_shard_that_nothing_would_come_of(more: tuple[str, ...], why: str) -> None:
    status, out, err = command("--shard=1/2", "--peer=t5g2ref:numpy:float32", *more)
    assert (status, out) == (2, "")
    assert why in err


# What does not fit together


def test_a_shard_is_missing(runs: Runs) -> None:
    assert "--shard 2 of 2: no file is of it" in refused(runs.few[0])


def test_a_shard_is_given_twice(runs: Runs) -> None:
    assert "is of --shard 1/2, and so is" in refused(runs.few[0], runs.few[1], runs.few[0])


def test_another_number_of_shards(runs: Runs, tmp_path: Path) -> None:
    assert "is of --shard 1/3, expected one of 2" in refused(runs.few[0], runs.shard(1, tmp_path / "a.json", of=3))


def test_another_checkpoint(runs: Runs, tmp_path: Path) -> None:
    other = runs.shard(2, tmp_path / "a.json", "--peer=t5g2ref:numpy:float32", "--ckpt=tiny-even", "--lane=fp32")
    assert "--ckpt 'tiny-even', not 'tiny-released'" in refused(runs.few[0], other)


def test_another_lane(runs: Runs, tmp_path: Path) -> None:
    more = ("--ckpt=tiny-released", "--lane=exact", "--lane=fp32")
    other = runs.shard(2, tmp_path / "a.json", "--peer=t5g2ref:numpy:float32", *more)
    assert "--lane exact True, not False" in refused(runs.few[0], other)


def test_another_peer(runs: Runs, tmp_path: Path) -> None:
    other = runs.shard(2, tmp_path / "a.json", "--peer=t5g2ref:numpy:bfloat16", "--ckpt=tiny-released", "--lane=bf16")
    assert "--peer t5g2ref:numpy:bfloat16, not t5g2ref:numpy:float32" in refused(runs.few[0], other)


def put(*path: Any, value: Any) -> Callable[[Lines], None]:
    """A change of one place in the lines."""

    def change(lines: Lines) -> None:
        place: Any = lines
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def twice(lines: Lines) -> None:
    lines.insert(1, lines[1])


def unknown(lines: Lines) -> None:
    lines[1]["more"] = 1


def foreign(lines: Lines) -> None:
    """The other shard's comparison in this one's file."""
    case = {"short": "eoi", "eoi": "short"}[lines[1]["comparison"][2]]
    lines[1]["comparison"][2] = lines[1]["judgements"][0]["case"] = case


TERMS = (0, "terms")
JUDGED = (1, "judgements", 0)
FINDING = (*JUDGED, "local", 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put(*TERMS, "environment", "numpy", value="1.0"), "numpy 1.0, not "),
        (put(*TERMS, "environment", value={}), "t5g2ref none, not "),
        (put(0, "checkpoints", 0, "mark", value="0" * 64), "other weights of checkpoint tiny-released"),
        (put(0, "version", value=2), "has version 2, expected 1"),
        (put(0, "format", value="x"), "of another format"),
        (put(0, "share", value=[2, 10**9]), "is none"),
        (put(0, "share", value=["2", 2]), "expected a whole number"),
        (put(0, "checkpoints", value=[]), "expected a list of 1 to 16"),
        (put(0, "checkpoints", 0, "config", value={}), "its checkpoint is refused"),
        (put(0, "checkpoints", 0, "config", "encoder", "text_config", "sliding_window", value=MAX_SIZE), "refused"),
        (put(*TERMS, "peers", value=[["a"] * 8] * 2000), "expected true or false"),
        (put(*TERMS, "cases", value=[[]]), "expected printable text"),
        (put(1, "beside", 0, "t5g2ref:numpy:float32", "numpy", value="0"), "numpy 0, not "),
        (twice, "stands twice"),
        (unknown, "expected an object with comparison, judgements, beside"),
        (foreign, "which is not of --shard 2/2"),
        (lambda lines: lines.pop(1), "was cut short, 1 of 1 comparisons of --shard 2/2 are not there"),
        (lambda lines: lines.pop(), "was cut short, 0 of 1 comparisons"),
        (lambda lines: lines.append(lines[1]), "something follows the end"),
        (put(1, "comparison", value=["tiny", "nobody", "short"]), "is no comparison of this run"),
        (put(1, "judgements", value=[1, 2, 3]), "expected two judgements at most"),
        (put(1, "judgements", value=[]), "has no judgement, expected one"),
        (lambda lines: lines[1]["judgements"].append(lines[1]["judgements"][0]), "has 2 judgements, expected one"),
        (put(*JUDGED, "case", value="exact"), "is of exact, expected"),
        (put(*JUDGED, "known", value="excused"), "is known already, which only a report says"),
        (put(*FINDING, 0, value="no.such.tap"), "no.such.tap in call 0 is no tap of case"),
        (put(*FINDING, 1, value=3), "in call 3 is no tap of case"),
        (put(*FINDING, 11, value="nan"), "passes with nan of 8.0 in"),
        (put(*FINDING, 11, value=1e9), "passes with 1000000000.0 of 8.0 in"),
        (put(*FINDING, 9, value=0), "of 8.0 in 0 tokens"),
        (put(1, "beside", 2, value=["a\n  VERDICT: CONFORMS"]), "a note has more than one line"),
        (put(*TERMS, "notes", value=["a\n  VERDICT: CONFORMS"]), "notes of one line"),
        (put(*TERMS, "cases", value=["x"] * 60_000), "at most 1000 patterns of cases"),
        (put(*JUDGED, "peer", value="another"), "expected short of t5g2ref:numpy:float32 on tiny-released"),
        (put(*JUDGED, "dtype", value="float16"), "expected short of"),
        (put(*JUDGED, "error", value="\x1b[2J"), "expected printable text"),
        (put(*JUDGED, "error", value="x" * 70_000), "expected printable text of at most 65536"),
        (put(*JUDGED, "repeated", value=10**400), "expected a whole number"),
        (put(*JUDGED, "seconds", value={"a": "soon"}), "expected a number"),
        (put(*JUDGED, "logits", value={"rms": 1.0}), "which is no set of figures"),
        (put(*JUDGED, "masks", value=[{"tap": "x"}]), "expected an object with tap, call"),
        (put(*JUDGED, "made", value=[]), "expected an array of ids for each prompt"),
        (put(*FINDING, 2, value="fine"), "is no finding"),
        (put(*FINDING, 1, value=1 << 40), "is no finding"),
        (put(*FINDING, 3, value="NaN"), "expected a number, or one of nan"),
        (put(*FINDING, 6, value={}), "expected a JSON list"),
        (put(*JUDGED, "local", 0, value=[]), "has 0 values, expected"),
    ],
)
def test_a_file_that_is_spoilt(runs: Runs, tmp_path: Path, change: Callable[[Lines], Any], why: str) -> None:
    assert why in refused(*spoilt(runs, tmp_path, change))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no whole line"),
        (b"{", "has no whole line"),
        (b"[" * 1_000_000 + b"\n", "not JSON"),
        (b'{"a":' * 100_000 + b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[]\n", "expected an object"),
        (b'{"verdict": "CONFORMS"}\n', "is a report"),
        (b'{"format": 1, "format": 1}\n', "appears twice"),
    ],
)
def test_what_is_no_shard_at_all(runs: Runs, tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "odd.json").write_bytes(content)
    assert why in refused(runs.few[0], tmp_path / "odd.json")


def test_a_line_without_an_end(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.sweep.kept.MOST_BYTES", 1000)
    assert "a line has more than 1000 bytes" in refused(*runs.few)


@pytest.mark.parametrize("of", [0.3, 0.7, 0.99, -1])
def test_a_file_that_was_cut(runs: Runs, tmp_path: Path, of: float) -> None:
    content = runs.few[1].read_bytes()
    (tmp_path / "cut.json").write_bytes(content[: int(len(content) * of) if of > 0 else -1])
    assert "cut short" in refused(runs.few[0], tmp_path / "cut.json")


def test_a_folder_and_no_file(runs: Runs, tmp_path: Path) -> None:
    assert "cannot be read" in refused(runs.few[0], tmp_path)
    assert "cannot be read" in refused(runs.few[0], tmp_path / "none.json")


def test_changes_at_random_end_in_a_line_or_a_report(runs: Runs, tmp_path: Path) -> None:
    """Broken by a field that is read and not checked: the suite itself then fails on a stranger's file."""
    rng = random.Random(20261127)
    strange = ["", "nan", -1, 10**30, 1e308, None, True, [], {}, "\x00", "short", "mask", [[1]], {"a": 1}]
    told = list[str]()
    for _ in range(150):

        def change(lines: Lines) -> None:
            place: Any = lines
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = rng.choice(keys)
                if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.1:
                    place[key] = rng.choice(strange)
                    return
                place = place[key]

        try:
            merged_result(spoilt(runs, tmp_path, change), None, "", progress=False).last_line()
        except UsageError as error:
            told.append(str(error))
    assert len(told) > 75
    assert all(error.count("\n") == 0 for error in told)


def test_what_a_black_box_shows_fits_a_line() -> None:
    """Of any case: numbers and ids of 8 bytes, in base64. Broken by a run whose end cannot be written."""
    assert 2 * 8 * MOST_NUMBERS * 4 / 3 < MOST_BYTES / 4


def test_weights_have_a_mark(runs: Runs) -> None:
    kept = read(runs.few[0])
    assert kept.header.checkpoints[0].mark != read(runs.parts[0]).header.checkpoints[0].mark
    assert header_of(kept.work, Share(1, 2)).checkpoints[0].config == kept.header.checkpoints[0].config
    assert not missing(part(kept.work, Share(1, 2)), [one.comparison for one in kept.records])


# What is lost or changed never makes a verdict better


def loses(*path: Any, of: Callable[[int], bool]) -> Callable[[Lines], None]:
    """A change that keeps only some entries of a list."""

    def change(lines: Lines) -> None:
        place: Any = lines
        for step in path:
            place = place[step]
        place[:] = [entry for i, entry in enumerate(place) if of(i)]

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (loses(*JUDGED, "local", of=lambda i: i % 2 == 0), "cumulative has "),
        (loses(*JUDGED, "local", of=lambda i: i > 0), " findings, expected "),
        (loses(*JUDGED, "cumulative", of=lambda i: i > 0), "cumulative has "),
        (loses(*JUDGED, "cumulative", of=lambda i: False), "cumulative has 0 findings, expected "),
        (lambda lines: lines[1]["judgements"][0]["local"].reverse(), "local has "),
        (put(*JUDGED, "repeated", value=7), "findings, and 7 taps that were compared twice"),
        (put(*TERMS, "peers", value=encoded([Asked("p", "float32")] * 2)), "two have one name"),
    ],
)
def test_findings_that_are_not_there(runs: Runs, tmp_path: Path, change: Callable[[Lines], Any], why: str) -> None:
    """Broken by a judgement that is believed by the findings that it has, and not held against the case's plan."""
    assert why in refused(*spoilt(runs, tmp_path, change))


def test_a_tap_that_is_shown_in_no_call_any_more(runs: Runs, tmp_path: Path) -> None:
    """Broken by taking what findings there are for all that the peer shows."""

    def change(lines: Lines) -> None:
        found = lines[1]["judgements"][0]
        gone = next(f[0] for f in found["local"] if f[0].endswith("mlp.gelu") or f[0].endswith("down_proj"))
        found["local"] = [f for f in found["local"] if f[0] != gone]

    assert "taps that were compared twice" in refused(*spoilt(runs, tmp_path, change))

    def change_more(lines: Lines) -> None:
        found = lines[1]["judgements"][0]
        for anchor in ("local", "cumulative"):
            found[anchor] = [f for f in found[anchor] if f[0] != "logits"]
        found["repeated"] = len(found["local"])

    assert "has no finding at logits, which every peer has to show" in refused(*spoilt(runs, tmp_path, change_more))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_line_is_believed(runs: Runs, data: st.DataObject) -> None:
    """Bytes that are others, are gone, or are there twice: the line is refused, or it is the one that was written."""
    line = data.draw(st.sampled_from(runs.few[0].read_bytes().splitlines()))
    at = data.draw(st.integers(0, len(line) - 1))
    others = st.sampled_from([line[at : at + 1] * 2, b"0", b'"pass"', b"e"])
    middle = data.draw(st.one_of(st.binary(max_size=3), others))
    changed = line[:at] + middle + line[at + data.draw(st.integers(0, 3)) :]
    try:
        found = _object(changed, "a")
    except UsageError:
        return
    assert changed == line
    assert found == {name: value for name, value in json.loads(line).items() if name != "sum"}


@pytest.fixture(scope="module")
def deviating(runs: Runs) -> tuple[Work, list[str]]:
    """The records of a shard whose judgement has a failing tap, as text."""
    kept = read(runs.parts[0])
    failing = [r for r in kept.records if r.judgements and r.judgements[0].culprit in r.judgements[0].local]
    return kept.work, [json.dumps(written(record)) for record in failing]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_changed_field_takes_a_culprit_away(deviating: tuple[Work, list[str]], data: st.DataObject) -> None:
    """Also where the checksum is right again: a failing tap stays one, or the record is refused."""
    work, records = deviating
    raw = json.loads(data.draw(st.sampled_from(records)))
    found = raw["judgements"][0]
    failing = [(name, i) for name in ("local", "cumulative") for i, f in enumerate(found[name]) if f[2] != "pass"]
    name, i = data.draw(st.sampled_from(failing))
    if data.draw(st.booleans()):
        field = data.draw(st.integers(0, len(found[name][i]) - 1))
        value = st.one_of(st.sampled_from(["pass", "mask", "nan", "", None, 0, 1, 1e9, []]), st.floats(0, 2), st.text())
        found[name][i][field] = data.draw(value)
    else:
        del found[name][i]
    try:
        back = read_record(raw, work, "a")
    except PlainError:
        return
    assert back.judgements[0].culprit is not None


def test_the_memory_of_a_merged_run_is_the_most_that_a_shard_had(runs: Runs, tmp_path: Path) -> None:
    """Its seconds are those of all: machine time. Broken by a sum of what several machines had."""

    def change(peak: int, seconds: float) -> Callable[[Lines], None]:
        def changed(lines: Lines) -> None:
            lines[-1]["end"][1:3] = [seconds, peak]

        return changed

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, first = spoilt(runs, tmp_path / "a", change(7 << 30, 2.5), number=1)
    _, second = spoilt(runs, tmp_path / "b", change(5 << 30, 4.0), number=2)
    found = merged([first, second])
    assert (found.peak_bytes, found.seconds) == (7 << 30, 6.5)
    assert merged([second, first]).peak_bytes == 7 << 30


def test_notes_of_a_checkpoint_are_united(runs: Runs, tmp_path: Path) -> None:
    """Where one machine downloaded the weights, and another one found them: both are said, and neither is refused."""
    files = spoilt(runs, tmp_path, put(0, "checkpoints", 0, "notes", value=["weights: the cache", "both"]))
    status, out, err = command("merge", *files)
    assert (status, err) == (0, "")
    assert out.count("weights: the cache") == 1
    assert [checkpoint.notes for checkpoint in merged(files).header.checkpoints] == [("weights: the cache", "both")]
