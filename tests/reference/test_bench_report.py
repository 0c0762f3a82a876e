"""What tools/bench.py says of what it measured: tables, JSON, the picture, and which numbers are no findings."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT
from rich.console import Console

sys.path.append(str(ROOT / "tools"))

from bench_rows import result, row, timed
from benchmark import report
from benchmark.document import SCHEMA, as_json
from benchmark.result import Column, Result


def shown(found: Result) -> str:
    out = io.StringIO()
    report.show(found, Console(file=out, width=report.WIDTH, highlight=False))
    return out.getvalue()


def lines_of(found: Result, title: str) -> dict[str, list[str]]:
    """Item → cells of a table, found by how its title begins."""
    lines = shown(found).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(title)) + 2
    table = lines[start : lines.index("", start)]
    return {line.split()[0]: line.split()[1:] for line in table if line.strip()}


def document(found: Result) -> Any:
    return json.loads(as_json(found), parse_constant=lambda name: pytest.fail(name))


def test_a_row_by_hand() -> None:
    step = row("decode", steps=16, batch=8, moving=0.0088, operations=1, bytes=1)  # the repeat is 11 ms
    found = result(row(), step)
    assert lines_of(found, "Times")["decode"] == ["float32", "512", "8", "0.688", "±9", "0.688", "±9", "-"]
    assert lines_of(found, "Ours over theirs")["encode"] == ["float32", "512", "1", "numpy", "1.00", "-"]
    # 6 of 11 ms; for the step 8.8 of 11 ms, 0.55 ms each
    assert lines_of(found, "Floors")["encode"] == ["float32", "512", "1", "6.00", "2.00", "55%", "55%", "-"]
    assert lines_of(found, "Floors")["decode"] == ["float32", "512", "8", "0.375", "0.550", "80%", "80%", "-"]
    assert lines_of(found, "Tokens")["decode"] == ["float32", "512", "8", "11636", "11636", "-"]  # 128 / 11 ms
    assert (row().bound, step.bound) == ("operations", "bytes")
    assert found.status == 0


def test_five_columns_fit_100() -> None:
    names = ("cupy:0", "cupy-fast", "sdpa", "eager", "compiled")
    columns = [Column(name, "ours" if at < 2 else "transformers", name) for at, name in enumerate(names)]
    sides = {name: replace(timed(123456.7, memory=96 << 30), distance=0.01) for name in names}
    rows = [row("forward", "bfloat16", source=32768, batch=64, sides=sides, computing=100.0), row("load", source=0)]
    lines = shown(result(*rows, columns=tuple(columns))).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines), "a cell was cut"
    assert any("[brackets]" in line for line in lines)
    assert any("123457" in line for line in lines)


def test_memory_that_is_not_known() -> None:
    found = result(row(sides={"numpy": timed(memory=None), "sdpa": timed(memory=0, distance=0.0)}))
    assert lines_of(found, "Memory")["encode"] == ["float32", "512", "1", "not", "known", "0", "-"]
    assert lines_of(found, "Memory")["weights"] == ["float32", "4096", "4096", "-"]


@pytest.mark.parametrize(
    ("dtype", "distance", "limit"),
    [("float32", math.nan, "0.01"), ("float32", 0.011, "0.01"), ("bfloat16", 0.21, "0.2")],
)
def test_sides_that_differ_are_an_error(dtype: str, distance: float, limit: str) -> None:
    bad = row(dtype=dtype, sides={"numpy": timed(distance=distance), "sdpa": timed(distance=0.0)})
    found = result(row(), bad)
    assert found.status == 1
    output = " ".join(shown(found).split())
    assert "!!" in output
    assert (
        f"WARNING encode of 512 tokens in {dtype}: numpy has distance {distance:.2g}, expected at most {limit}"
        in output
    )
    assert document(found)["rows"][1]["ratios"][0] == {"ours": "numpy", "theirs": "sdpa", "ratio": None}


def test_a_reference_that_is_not_finite_is_an_error() -> None:
    found = result(row("truth", "float64", sides={"numpy": timed(distance=math.nan)}, reference="numpy"))
    assert (found.status, lines_of(found, "Distance")["truth"][3:6]) == (1, ["not", "finite", "!!"])


def test_an_engine_that_differs_or_fails_is_no_error_and_has_no_ratio() -> None:
    sides = row().sides | {"ctranslate2": timed(1.0, distance=0.7)}
    found = result(row(sides=sides), row("forward", lacks={"ctranslate2": "failed"}), remarks=["vision: text alone"])
    assert found.status == 0
    assert lines_of(found, "Ours over theirs")["encode"][-1] == "differs"
    assert lines_of(found, "Times")["forward"][-1] == "failed"
    output = " ".join(shown(found).split())
    said = "ctranslate2 computes something else, so it has no ratio: encode of 512 tokens in float32: distance 0.7,"
    assert f"NOTE {said} expected at most 0.01" in output
    assert "NOTE vision: text alone" in output
    first = document(found)["rows"][0]
    assert [one["ratio"] for one in first["ratios"]] == [1.0, None]
    assert (first["agrees"]["ctranslate2"], first["reached"]["ctranslate2"]) == (False, None)


def test_a_busy_machine_gives_no_finding() -> None:
    found = result(row(others=0.04), row("forward", others=0.05), row("vision", source=0, others=0.5))
    ratios, floors = lines_of(found, "Ours over theirs"), lines_of(found, "Floors")
    assert (ratios["encode"][4], ratios["forward"][4]) == ("1.00", "busy")
    assert (floors["encode"][5], floors["forward"][5]) == ("55%", "busy")
    said = "others took 5% to 50% of the cores, so these are no findings: forward of 512 tokens in float32; vision in"
    assert f"WARNING {said}" in " ".join(shown(found).split())
    quiet, busy, _ = document(found)["rows"]
    assert (quiet["ratios"][0]["ratio"], busy["ratios"][0]["ratio"]) == (1.0, None)
    assert (quiet["busy"], busy["busy"], busy["reached"]) == (False, True, {"numpy": None, "sdpa": None})
    assert found.status == 0, "it was measured all the same"


def test_nothing_measured_what_failed_and_what_was_interrupted() -> None:
    assert result().status == 1
    assert "WARNING  nothing was measured" in shown(result())
    failed = result(row(), warnings=["load failed: OSError: disk full"])
    assert failed.status == 1
    assert "WARNING  load failed: OSError: disk full" in shown(failed)
    cut = result(row(), complete=False)
    assert "WARNING  interrupted: what comes after the last row was not measured" in shown(cut)
    assert (document(cut)["complete"], document(cut)["status"]) == (False, None)


def test_json_has_a_schema_every_repeat_and_no_bare_nan() -> None:
    bad = row(sides={"numpy": timed(distance=math.nan)}, reference="numpy", moving=math.nan)
    found = document(result(bad))
    (only,) = found["rows"]
    assert (found["schema"], found["tool"], found["status"]) == (SCHEMA, "bench", 1)
    assert found["held"] == [{"dtype": "float32", "bytes": {"numpy": 4 << 30, "sdpa": 4 << 30}}]
    assert only["sides"]["numpy"]["seconds"] == [0.011, 0.012, 0.01, 0.013, 0.009]
    assert (only["sides"]["numpy"]["distance"], only["moving"], only["floor"], only["bound"]) == (
        "nan",
        "nan",
        0.006,
        "operations",
    )


# The picture


def lengths(**changes: Any) -> list[Any]:
    """Both sides at three lengths, ours half as fast each time; a step of decoding at one."""
    rows = [
        row(source=source, sides={"numpy": timed(source), "sdpa": timed(2 * source, distance=0.0)}, **changes)
        for source in (128, 512, 2048)
    ]
    return [*rows, row("decode", source=512, steps=16), row("vision", source=0)]


def test_a_picture_has_a_line_a_side_their_names_the_limit_and_the_machine() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, the extra `plot`")
    from benchmark import plot

    figure = plot.drawn(result(*lengths()))
    encode, decode, memory, _ = figure.axes  # vision has no length
    assert {text.get_text() for text in encode.texts} == {"numpy", "sdpa", "the machine's limit: operations"}
    drawn = {tuple(line.get_ydata()) for line in encode.lines if len(line.get_xdata()) == 3}
    assert drawn == {(128.0, 512.0, 2048.0), (256.0, 1024.0, 4096.0), (6.0, 6.0, 6.0)}
    assert [list(line.get_xdata()) for line in encode.lines[:1]] == [[128, 512, 2048]]
    assert encode.get_xscale() == encode.get_yscale() == "log"
    assert memory.get_ylim()[0] == 0, "half as high is half as much"
    assert (encode.get_title("left"), decode.get_title("left")) == ("encode, float32", "one decoding step, float32")
    assert "a processor, 2 cores. t: source 512." in figure.get_supxlabel()


def test_a_picture_of_an_interrupted_run_has_no_empty_panels() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, the extra `plot`")
    from benchmark import plot

    rows = [row(), row("decode"), row(dtype="bfloat16")]
    panels = plot.drawn(result(*rows, complete=False)).axes
    assert [panel.get_visible() for panel in panels] == [True, True, True, True, True, False, True, False]


def test_names_at_the_ends_of_lines_keep_apart_near_their_lines() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, the extra `plot`")
    from benchmark import plot
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    panel.set_ylim(0, 100)
    gap = 100 * plot.GAP
    placed = plot._apart(panel, {"a": 50.0, "b": 50.0, "c": 51.0, "far": 90.0})
    assert placed["far"] == 90
    assert [placed[name] for name in "abc"] == pytest.approx([50 + 1 / 3 + gap * at for at in (-1, 0, 1)])


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_a_picture_is_written_whole_and_alike(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, the extra `plot`")
    from benchmark import plot

    files = [tmp_path / f"{name}{ending}" for name in "ab"]
    for file in files:
        plot.save(result(*lengths(others=0.5), complete=False), file)
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert len(first) < 150_000
    if ending == ".svg":
        text = first.decode()
        assert "Hollow points are no findings: others used the cores meanwhile." in text
        assert "Interrupted: not all was measured." in text
    assert sorted(tmp_path.iterdir()) == files, "nothing else is left"
