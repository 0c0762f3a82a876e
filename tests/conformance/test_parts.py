"""A checkpoint that is a part of the model: the judge asks what that part can show, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from files import Change, changed, encoder_alone, text_alone, text_alone_and_said

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from conformance import __main__ as command
from conformance.cases import catalogue
from conformance.checkpoints import resolve

ENCODING = ["short", "window", "padded-right", "padded-left", "eoi", "image", "images", "far-positions"]


def judged(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = command.main(["--ckpt", str(folder), "--no-progress", *options])
    return status, capsys.readouterr().out


def test_an_encoder_has_the_cases_of_an_encoder(tmp_path: Path) -> None:
    (target,) = resolve(str(changed(tmp_path / "c", encoder_alone)), synthetic=False)
    cases = catalogue.build(target.config)
    assert [case.name for case in cases] == ENCODING
    assert {case.task for case in cases} == {"encoder"}
    assert not any(run.decoder_input_ids.size for case in cases for run in case.runs)
    assert not {"D34", "D44", "D55"} & {defect for case in cases for defect in case.exposes}
    assert "D31" in {defect for case in cases for defect in case.exposes}


@pytest.mark.parametrize("change", [text_alone, text_alone_and_said])
def test_text_alone_has_the_cases_without_pictures(tmp_path: Path, change: Change) -> None:
    (target,) = resolve(str(changed(tmp_path / "c", change)), synthetic=False)
    names = {case.name for case in catalogue.build(target.config)}
    assert "short" in names
    assert not names & {"image", "images"}


def test_an_encoder_is_judged_by_its_own_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(tmp_path / "c", encoder_alone)
    status, out = judged(folder, capsys, "--peer", "t5g2ref:numpy:float32", "--case", "[sw]*", "--case", "image")
    assert status == 0, out
    assert "t5gemma2_encoder: an encoder alone, which can encode and not generate" in " ".join(out.split())


def test_synthetic_weights_of_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(tmp_path / "c", encoder_alone)
    status, out = judged(folder, capsys, "--synthetic", "--calm", "--peer", "t5g2ref:numpy:float32", "--case", "short")
    assert status == 0, out


@pytest.mark.usefixtures("peer_installed")
def test_the_encoder_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes 256000 for the end-of-image id, whatever config.json says: T5Gemma2Encoder.__init__ of 5.24."""
    folder = changed(tmp_path / "c", encoder_alone)
    peer = ("--peer", "transformers:sdpa", "--lane", "fp32")
    status, out = judged(folder, capsys, *peer, "--case", "window", "--case", "padded-left", "--case", "far-positions")
    assert status == 0, out
    status, out = judged(folder, capsys, *peer, "--case", "eoi")
    assert status == 1
    assert "D06 image or EOI id hard-coded" in out
