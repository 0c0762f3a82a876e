"""The command where packages are missing, and on the transformers that is installed."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from command_line import Run, narrow, process, strictly

from conformance.cases.case import Case
from conformance.measure.limits import LIMITS
from t5g2ref import bundled, taps
from t5g2ref.config import Config


@pytest.mark.parametrize("package", ["rich", "torch", "transformers"])
def test_without_a_package(package: str) -> None:
    done = process(code=f"import sys\nsys.modules[{package!r}] = None")
    assert (done.returncode, done.stdout) == (2, "")
    peer = "" if package == "rich" else "peer transformers:eager:float32 needs "
    if package != "transformers" or importlib.util.find_spec("torch"):  # torch is imported, and missed, first
        assert done.stderr.startswith(f"conformance: {peer}{package}")
    assert done.stderr.endswith('is not installed: pip install "t5g2ref[conformance]"\n')
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_hides_the_package(tmp_path: Path) -> None:
    """As where the repository was cloned to: an editable install is found behind the folder."""
    (tmp_path / "t5g2ref").mkdir()
    (tmp_path / "conformance").symlink_to(ROOT / "conformance")
    hidden = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
sys.path.insert(0, {str(tmp_path)!r})
import conformance.__main__
"""
    done = subprocess.run([sys.executable, "-I", "-c", hidden], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "conformance: a folder here is called t5g2ref, and hides the package: go to another folder\n"


def test_lists_need_nothing() -> None:
    code = "import sys\nfor name in ('rich', 'torch', 'transformers', 'huggingface_hub'): sys.modules[name] = None"
    done = process("list", "cases", code=code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("option", ["--jobs=1", "--jobs=2", "--case=short"])
def test_a_peer_too_old_is_not_called_missing(tmp_path: Path, option: str) -> None:
    """Whoever imports it first: the command at its door or once it judges, or the processes that judge. What it warns
    of is no line of ours."""
    why = "cannot import name 'T5Gemma2Config' from 'transformers'"
    broken = f"import warnings\nwarnings.warn('soon gone')\nraise ImportError({why!r}, name='transformers')"
    for name, content in (("torch", ""), ("transformers", broken)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
    done = process("--peer", "transformers:sdpa", option, "--no-progress", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"could not be imported ({why})" in line
    assert "--upgrade" in line


def test_reader_that_has_had_enough() -> None:
    """`list taps | head`: no stack trace, and not the status that says DEVIATES."""
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "conformance", "list", "taps"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        os.close(write)
        os.close(read)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (3, "")


# The installed transformers


@pytest.fixture
def transformers_peer(peer_installed: None) -> Any:
    return importlib.import_module("conformance.peers.torch.transformers").TransformersPeer


@pytest.mark.usefixtures("peer_installed")
def test_transformers_conforms(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    status, lines, _ = run("--ckpt", "tiny-even", "--case", "short", "--json", str(file))
    assert status == 0
    assert lines[-1] == "VERDICT: CONFORMS (on 1 of 31 cases)"
    narrow(lines)
    document = strictly(file)
    assert {"t5g2ref", "numpy", "python", "transformers", "torch"} == set(document["environment"])
    expected = [tap.name for tap in taps.table(Config.load(bundled("tiny-even")), images=False)]
    half = {"transformers:eager:bfloat16:cpu", "transformers:sdpa:bfloat16:cpu"}
    assert {j["peer"] for j in document["judgements"]} == {"transformers:eager", "transformers:sdpa"} | half
    for judgement in document["judgements"]:
        if judgement["case"] == "exact":
            assert len(judgement["exact"]) > 50
            continue
        rows = [dict(zip(document["columns"], row, strict=True)) for row in judgement["local"]]
        assert [row["tap"] for row in rows] == expected
        limit = LIMITS["half" if judgement["peer"] in half else "local"]
        assert all(math.isfinite(row["worst"]) and row["worst"] <= limit for row in rows)


def test_transformers_starting_from_pad_deviates(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, transformers_peer: Any
) -> None:
    """D08: the case gives labels, and the peer has to make its decoder ids of them."""
    peer = transformers_peer
    true = peer._build

    def build(self: Any, case: Case) -> Any:
        model = true(self, case)
        shift = model.prepare_decoder_input_ids_from_labels

        def from_pad(labels: Any) -> Any:
            ids = shift(labels).clone()
            ids[:, 0] = model.config.decoder.pad_token_id
            return ids

        model.prepare_decoder_input_ids_from_labels = from_pad
        return model

    monkeypatch.setattr(peer, "_build", build)
    file = tmp_path / "out.json"
    status, lines, _ = run(
        *("--ckpt", "tiny-even", "--case", "loss", "--lane", "fp32", "--peer", "transformers:sdpa", "--json", str(file))
    )
    assert status == 1
    place = "(values, D08; transformers:sdpa, case loss, tiny-even)"
    assert lines[-1] == f"VERDICT: DEVIATES (on 1 of 26 cases) at decoder.embed_tokens {place}"
    narrow(lines)
    assert "D08 decoder starts from pad instead of bos" in "\n".join(lines)
    assert strictly(file)["judgements"][0]["culprit"]["tap"] == "decoder.embed_tokens"


@pytest.mark.usefixtures("peer_installed")
def test_as_a_process() -> None:
    options = ("--ckpt", "tiny-even", "--case", "short", "--lane", "fp32", "--no-progress")  # a slow machine tells more
    done = process(*options, "--peer", "transformers:eager")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "VERDICT: CONFORMS (on 1 of 26 cases)"
    assert done.stdout.endswith("\n")


@pytest.mark.usefixtures("peer_installed")
def test_real_weights_that_are_not_here(tmp_path: Path) -> None:
    done = process("--ckpt", "1b", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "VERDICT" not in done.stdout
    for part in ("T5G2REF_1B", "hf download google/t5gemma-2-1b-1b", "--ckpt 1b --synthetic", "accept the licence"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
