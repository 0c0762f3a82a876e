"""Picture files: what they are, that legal processors pass and wrong ones are named, and what a peer may answer."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Array

pytest.importorskip("PIL", reason="needs Pillow: it reads pictures")
pytest.importorskip("threadpoolctl", reason="needs threadpoolctl: the judge's threads share the cores by it")

from PIL import Image
from PIL.ImageOps import exif_transpose

from conformance.cases.case import Case
from conformance.cases.picture import PIXELS, cmyk, png
from conformance.cases.pictured import NAME, build
from conformance.checkpoints import resolve
from conformance.defects.exposure import hidden
from conformance.defects.pictures import FAULTS
from conformance.exchange.plain import PlainError
from conformance.judge.judgement import Judgement
from conformance.judge.pictured import NO_PROCESSOR, judge_pictures, legal_note
from conformance.peers.protocol import OptionalMembers, Skip
from conformance.report.terms import Asked, Terms
from conformance.selftest.trial import Bench
from conformance.sweep.whole import require_whole
from conformance.target import Target
from t5g2ref.processor.image import preprocess

SIDE = 106  # of tiny's tower


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny", synthetic=False)[0]


@pytest.fixture(scope="module")
def case(target: Target) -> Case:
    (made,) = build(target.config)
    return made


class Peer(OptionalMembers):
    """A peer that has a processor and nothing else."""

    name, dtype = "peer", "float32"

    def __init__(self, prepare: Callable[[Path], Any] | None) -> None:
        self.preprocess = prepare


def judged(target: Target, case: Case, prepare: Any, *, repeat: bool = False) -> Judgement:
    return judge_pictures(Peer(prepare), target, case, repeat=repeat)  # type: ignore[arg-type]


def ours(file: Path) -> Array:
    return preprocess(file, SIDE)


# Files


def test_a_file_holds_what_was_put_into_it() -> None:
    """Pillow reads the very values back, in the mode that is meant."""
    rng = np.random.default_rng(1)
    for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        values = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        found = Image.open(io.BytesIO(png("a", values).data))
        assert found.mode == mode
        assert np.array_equal(np.asarray(found).reshape(values.shape), values)
    deep = rng.integers(0, 1 << 16, (5, 7, 1), dtype=np.uint16)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png("a", deep).data)))[..., None], deep)
    inks = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    found = Image.open(io.BytesIO(cmyk("a", inks).data))
    assert (found.mode, np.asarray(found).tolist()) == ("CMYK", inks.tolist())
    colours, indices = rng.integers(0, 256, (256, 3), np.uint8), rng.integers(0, 256, (5, 7, 1), dtype=np.uint8)
    found = Image.open(io.BytesIO(png("a", indices, palette=colours).data))
    assert found.mode == "P"
    assert np.array_equal(np.asarray(found.convert("RGB")), colours[indices[..., 0]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_says_how_it_is_turned(orientation: int) -> None:
    """By EXIF's own table: where its first row and first column are to be seen."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turned = exif_transpose(Image.open(io.BytesIO(png("a", values[..., None], orientation=orientation).data)))
    flipped = {1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1]}
    expected = flipped.get(orientation)
    if expected is None:
        expected = {5: values.T, 6: values[::-1].T, 7: values[::-1, ::-1].T, 8: values[:, ::-1].T}[orientation]
    assert np.array_equal(np.asarray(turned), expected)


def test_the_case_has_every_mode_turned_ones_and_both_ways_to_resize(case: Case) -> None:
    opened = {p.name: Image.open(io.BytesIO(p.data)) for p in case.pictures}
    assert {image.mode for image in opened.values()} == {"L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"}
    assert sum(image.getexif().get(0x0112, 1) != 1 for image in opened.values()) == 3
    assert {p.width > SIDE for p in case.pictures if (p.width, p.height) != (SIDE, SIDE)} == {True, False}
    assert all(opened[p.name].size == (p.width, p.height) for p in case.pictures)
    assert sum(len(p.data) for p in case.pictures) < 1 << 19


# Verdicts


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.key)
def test_a_wrong_processor_is_found_and_named(fault: Any, target: Target) -> None:
    trial = Bench({"tiny": target}).try_out(fault, "own")
    assert trial.injected
    assert trial.culprit == (PIXELS, fault.status, fault.call)
    assert trial.named == [fault.id]


def test_ours_passes_to_the_bit(target: Target, case: Case) -> None:
    found = judged(target, case, ours, repeat=True)
    assert found.passed
    assert [(f.status, f.judged) for f in found.exact] == [("pass", 0.0)] * 12
    assert (found.repeated, found.unsteady, legal_note(found)) == (12, "", "")


def triangles(size: int, side: int) -> Array:
    """(side, size): the weights of a bilinear filter that widens where it shrinks, in float64."""
    scale = size / side
    reach = max(scale, 1.0)
    centre = (np.arange(side) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centre[:, None]) / reach)
    made: Array = weights / weights.sum(axis=1, keepdims=True)
    return made


def averaged(file: Path) -> Array:
    """Another library's: exact averages in one go, never whole levels; values in another order of operations."""
    with Image.open(file) as image:
        levels = np.asarray(exif_transpose(image).convert("RGB"), np.float64)
    across, down = triangles(levels.shape[1], SIDE), triangles(levels.shape[0], SIDE)
    resized = down @ levels.transpose(2, 0, 1) @ across.T
    return resized.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


@pytest.mark.parametrize("whole", [False, True])
def test_another_library_passes_with_a_note(whole: bool, target: Target, case: Case) -> None:
    """It keeps averages as they are, or rounds them to levels once."""

    def prepare(file: Path) -> Array:
        values = averaged(file)
        rounded = np.rint((values.astype(np.float64) + 1) * 127.5) / 127.5 - 1
        return rounded.astype(np.float32) if whole else values

    found = judged(target, case, prepare)
    assert found.passed, found.culprit
    assert max(f.judged for f in found.exact) > 0.25, "it is felt"
    assert " of 12 pictures are not ours to the bit" in legal_note(found)


def test_what_needs_no_resampling_is_not_given_a_level(target: Target, case: Case) -> None:
    """A level more in one value: too much where nothing is averaged, allowed where it is."""
    for name, passes in (("rgb.png", False), ("wide.png", True)):

        def prepare(file: Path, name: str = name) -> Array:
            values = ours(file)
            values[1, 5, 7] += np.float32(2 / 255 * (file.name == name))
            return values

        culprit = judged(target, case, prepare).culprit
        assert (culprit is None) == passes
        assert culprit is None or culprit.detail.startswith("rgb.png: 1 of 33708 values are off; expected ")


def test_what_nobody_knows_is_found_and_not_named(target: Target, case: Case) -> None:
    found = judged(target, case, lambda file: ours(file) ** 2)
    assert found.deviates
    assert found.named == []


# Answers


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (lambda _: None, "missing", "rgb.png: preprocess() gave None, expected an array"),
        (lambda f: ours(f)[None], "shape", "rgb.png: expected (3, 106, 106), found (1, 3, 106, 106)"),
        (lambda f: ours(f).astype(np.float64), "dtype", "rgb.png: expected float32, found float64"),
        (lambda f: ours(f).tolist(), "dtype", "rgb.png: expected float32, found float64"),
        (lambda f: ours(f) * np.float32("nan"), "nan", "rgb.png: 33708 of 33708 values are not finite"),
        (lambda _: "no", "shape", "rgb.png: expected (3, 106, 106), found ()"),
        (lambda _: np.zeros((0,), np.float32), "shape", "rgb.png: expected (3, 106, 106), found (0,)"),
    ],
)
def test_no_values_are_a_finding(answer: Any, status: str, detail: str, target: Target, case: Case) -> None:
    found = judged(target, case, answer, repeat=True)
    assert found.culprit is not None
    assert (found.culprit.status, found.culprit.detail) == (status, detail)
    assert not found.passed


def test_what_raises_says_at_which_picture(target: Target, case: Case) -> None:
    def prepare(file: Path) -> Array:
        if file.suffix == ".tif":
            raise RuntimeError("no CMYK here")
        return ours(file)

    found = judged(target, case, prepare)
    assert found.error == "cmyk.tif: preprocess() raised RuntimeError: no CMYK here"
    assert len(found.exact) == 6
    assert not found.passed


def test_a_skip_is_none_of_a_pass_and_nobody_is_asked_without_a_processor(target: Target, case: Case) -> None:
    def prepare(_: Path) -> Array:
        raise Skip("not today")

    assert judged(target, case, prepare).skipped == "not today"
    assert judged(target, case, None).skipped == NO_PROCESSOR


def test_two_calls_that_differ_are_found(target: Target, case: Case) -> None:
    calls = iter(range(1000))
    found = judged(target, case, lambda f: ours(f) + np.float32(next(calls) % 2 * 1e-8), repeat=True)
    assert found.unsteady == "two calls of preprocess() for rgb.png give other values"


def test_files_are_gone_behind_it(target: Target, case: Case) -> None:
    seen: list[Path] = []

    def prepare(file: Path) -> Array:
        seen.append(file)
        return ours(file)

    judged(target, case, prepare)
    assert [file.name for file in seen] == [p.name for p in case.pictures]
    assert not any(file.exists() for file in seen)


# Exposure


def test_it_alone_exposes_what_pictures_show(target: Target, case: Case) -> None:
    assert case.name == NAME
    reasons = hidden([target.config], [case])
    assert not {"D58", "D77"} & set(reasons)
    assert {"D50", "D66", "D80", "D01"} <= set(reasons), "a processor says nothing of the model"
    assert "not every peer here has" in hidden([target.config], [])["D58"]


# transformers


@pytest.mark.peer
@pytest.mark.parametrize("name", ["tiny", "tiny-even", "demo"])
def test_transformers_has_the_same_bits(name: str, peer_installed: None) -> None:
    from conformance.peers.torch.pictures import prepared

    target = next(t for t in resolve(name, synthetic=False) if t.name == name)
    (case,) = build(target.config)
    found = judge_pictures(Peer(lambda file: prepared(target, file)), target, case)  # type: ignore[arg-type]
    assert found.passed, found.culprit or found.error or found.skipped
    assert legal_note(found) == ""


@pytest.mark.peer
@pytest.mark.parametrize(
    ("changes", "defect"),
    [
        ({"resample": 3}, "D58"),
        ({"resample": 0}, "D58"),
        ({"do_rescale": False}, "D58"),
        ({"do_normalize": False}, "D58"),
        ({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, "D58"),
        ({"rescale_factor": 1 / 256}, "D58"),
    ],
)
def test_transformers_set_wrongly_is_named(
    changes: dict[str, Any], defect: str, target: Target, case: Case, peer_installed: None
) -> None:
    from conformance.peers.torch.pictures import _kind

    size = {"height": SIDE, "width": SIDE}
    made = _kind()(**{"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": True} | changes)
    found = judged(target, case, lambda file: np.asarray(made([str(file)])["pixel_values"][0], np.float32))
    assert [s.defect for s in found.named] == [defect]


@pytest.mark.peer
def test_torch_without_antialias_is_named(target: Target, case: Case, peer_installed: None) -> None:
    """torch's own: a processor that shrinks by interpolate without antialias."""
    import torch

    def prepare(file: Path) -> Array:
        with Image.open(file) as image:
            values = np.array(exif_transpose(image).convert("RGB"), np.float32).transpose(2, 0, 1)
        x = torch.nn.functional.interpolate(torch.tensor(values)[None], (SIDE, SIDE), mode="bilinear")[0]
        made: Array = (x / 127.5 - 1).numpy()
        return made

    found = judged(target, case, prepare)
    assert [s.defect for s in found.named] == ["D77"]
    assert found.culprit is not None
    assert found.culprit.detail.endswith("just as where pictures are shrunk by taking points, not by averages")


def test_a_record_of_fewer_pictures_is_refused(target: Target, case: Case) -> None:
    """A shard that has lost its worst picture must not pass."""
    whole = judged(target, case, ours)
    terms = Terms(ckpt="tiny", peers=(Asked("peer", "float32"),), environment={})
    require_whole(whole, case, target.config, terms, "x")
    for exact in (whole.exact[:-1], whole.exact[1:], [*whole.exact[:-1], whole.exact[0]], []):
        with pytest.raises(PlainError, match=r"pictures, expected 12|without a finding"):
            require_whole(replace(whole, exact=exact), case, target.config, terms, "x")
    other = [replace(finding, tokens=1) for finding in whole.exact]
    with pytest.raises(PlainError, match="of no picture"):
        require_whole(replace(whole, local=other), case, target.config, terms, "x")
