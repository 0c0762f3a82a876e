"""Batches given a row at a time: the same rows, pictures and labels, and a verdict for an engine of one row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dumping import TINY, case_of, recorded, tiny

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from conformance.cases import catalogue
from conformance.cases.abilities import needs
from conformance.cases.rows import ALONE, alone
from conformance.commands import command_line as command
from conformance.exchange import writing

PEER = """
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.defects.all import FAULTS
from conformance.defects.injection import HEALTHY

class OneRow(FaultyPeer):
    lacks, weights = ("rows", "images", "classes"), None

    def run(self, case, dump):
        assert all(len(run.input_ids) == 1 for run in case.runs), case.name
        super().run(case, dump)

def create(_argument, _backend):
    peer = OneRow({fault})
    peer.name = "one row"
    return peer
"""


def test_every_batch_is_taken_apart() -> None:
    config = tiny().config
    for whole, rows in zip(catalogue.build(config), catalogue.build_rows(config), strict=True):
        batch = any(len(run.input_ids) > 1 for run in whole.runs)
        assert rows.name == whole.name + ALONE * batch
        assert "rows" not in needs(rows)
        assert sum(len(run.input_ids) for run in whole.runs) == len(rows.runs)
        ids = [row for run in whole.runs for row in run.input_ids.tolist()]
        assert ids == [run.input_ids[0].tolist() for run in rows.runs]
        for run in rows.runs:
            assert all(run.decoder_valid[:, first:last].any() for first, last in run.bounds), "a call of padding alone"
            assert sum(run.splits or ()) in (0, run.decoder_input_ids.shape[1])


def test_pictures_stay_with_their_row() -> None:
    whole = case_of(tiny(), "images")
    rows = alone(whole, tiny().config.image_token_index)
    pictures = [run.pixel_values for run in rows.runs]
    assert [None if p is None else len(p) for p in pictures] == [2, 1]
    joined = np.concatenate([p for p in pictures if p is not None])
    assert np.array_equal(joined, whole.runs[0].pixel_values)


def test_a_call_of_padding_alone_is_joined_to_the_next() -> None:
    rows = alone(case_of(tiny(), "padded-left-cached"), tiny().config.image_token_index)
    assert [run.splits for run in rows.runs] == [(4, 1, 2), (5, 2), (4, 1, 2)]


def verdict(capsys: pytest.CaptureFixture[str], *given: str) -> tuple[int, str]:
    status = command.main([*given, "--ckpt", TINY, "--no-progress"])
    return status, capsys.readouterr().out.strip().splitlines()[-1]


@pytest.mark.parametrize(("fault", "status"), [("HEALTHY", 0), ("next(f.inject for f in FAULTS if f.id == 'D38')", 1)])
def test_an_engine_of_one_row_has_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, status: int
) -> None:
    file = tmp_path / "one.py"
    file.write_text(PEER.format(fault=fault))
    cases = [word for name in ("short", "padded-right*", "padded-left-cached*") for word in ("--case", name)]
    more = ["--lane", "fp32", "--once", "--jobs", "1", *cases]
    found, line = verdict(capsys, "--peer", str(file), "--rows", *more)
    assert found == status, line
    assert ("padded-right-rows" in line) == (status == 1)
    found, line = verdict(capsys, "--peer", str(file), *more)
    assert found == 3
    assert "skips case padded-right: the peer lacks rows; --rows gives a row at a time" in line


def test_a_dump_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases, name = tmp_path / "cases", "eoi-rows"
    assert command.main(["export", str(cases), "--ckpt", TINY, "--rows", "--case", "eoi*", "--no-progress"]) == 0
    assert sorted(path.name for path in cases.iterdir() if path.is_dir()) == ["eoi-cached-rows", name]
    dump = tmp_path / "dump"
    case = alone(case_of(tiny(), "eoi"), tiny().config.image_token_index)
    files = [f"{name}/{n}.safetensors" for n in range(len(case.calls))]
    for file, call in zip(files, recorded(tiny(), case), strict=True):
        writing.tensors(dump / file, call)
    peer = '{"name": "mine", "dtype": "float32"}'
    shown = ", ".join(f'{{"file": "{file}"}}' for file in files)
    fields = f'"format": "t5g2ref-dump", "version": 1, "peer": {peer}, "checkpoint": "{TINY}"'
    (dump / "manifest.json").write_text(f'{{{fields}, "cases": {{"{name}": [{shown}]}}}}')
    found, line = verdict(capsys, "check", str(dump), "--case", name)
    assert found == 0, line
