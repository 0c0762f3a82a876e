"""What used to be silent: a note where the result is still what was asked for, an error where there is none.

What is said of files is in `test_files_people_have.py`; here it is inputs and settings.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import t5g2ref
from t5g2ref.command_line import main
from t5g2ref.config import Config, ConfigError
from t5g2ref.generate.greedy import greedy
from t5g2ref.model import T5Gemma2
from t5g2ref.notes import Note, note, noted

IDS, ANSWER = [[6, 5, 17]], [[6, 8]]
Make = Callable[..., T5Gemma2]


# Notes: the number is what was asked for


def test_pixels_that_were_not_scaled(model: Make) -> None:
    picture = np.full((1, 3, 32, 32), 200.0)
    with pytest.warns(Note, match=r"pixel_values: found numbers beyond 8, expected \[-1, 1\]: of bytes, take"):
        model().encode([[6, *[302] * 16]], pixel_values=picture)
    model().encode([[6, *[302] * 16]], pixel_values=picture / 127.5 - 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"position_ids": [[254, 255, 256]]},
            r"position_ids: go beyond max_position_embeddings \(256\), for",
        ),
        ({"decoder_position_ids": [[0, 192]]}, r"decoder_position_ids: go beyond max_position_embeddings \(192\)"),
    ],
)
def test_positions_beyond_the_longest(model: Make, given: dict[str, Any], words: str) -> None:
    with pytest.warns(Note, match=words):
        model()(IDS, ANSWER, **given)


def test_ids_beyond_the_longest(model: Make) -> None:
    with pytest.warns(Note, match=r"position_ids: go beyond max_position_embeddings \(256\)"):
        model().encode([[5] * 257])
    model().encode([[5] * 256])


def test_a_deep_picture_that_comes_out_white(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    ids = ",".join(["33", *["307"] * 16, "5"])
    command = ["generate", "tiny", "--ids", ids, "--image", str(tmp_path / "deep.png"), "--max-new-tokens", "1"]
    assert main(command) == 0
    words = "values to 40000, expected at most 255: all above come out white; scale it to 8 bits first"
    assert capsys.readouterr().err == f"t5g2ref: note: {tmp_path}/deep.png: {words}\n"


def test_notes_of_files_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`generate` reads config.json twice."""
    folder = shutil.copytree(t5g2ref.bundled("tiny"), tmp_path / "c")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "gptq"}}))
    assert main(["generate", str(folder), "--ids", "33,5", "--max-new-tokens", "1"]) == 0
    words = "quantization_config (gptq) is not applied: the weights are read as they are stored"
    assert capsys.readouterr().err == f"t5g2ref: note: {folder}: {words}\n"


def test_noted_keeps_notes_and_lets_other_warnings_through() -> None:
    into: list[str] = []

    def work() -> None:
        with noted(into):
            note("one")
            note("one")
            warnings.warn("another", stacklevel=1)

    with pytest.warns(UserWarning, match="another") as seen:
        work()
    assert into == ["one"]
    assert len(seen) == 1


# Errors: there is nothing sensible to give


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("type", "linear", "full_attention.type is 'linear', expected 'default', as rope_type; make the two agree"),
        ("type", ["linear"], "full_attention.type is ['linear'], expected 'default', as rope_type; make the two agree"),
    ],
)
def test_type_and_rope_type_disagree(path: str, value: object, words: str) -> None:
    raw = json.loads((t5g2ref.bundled("tiny") / "config.json").read_text())
    raw["decoder"]["rope_parameters"]["full_attention"] = {"rope_theta": 1e4, "rope_type": "default", path: value}
    with pytest.raises(ConfigError) as error:
        Config.from_dict(raw)
    assert str(error.value) == f"decoder.rope_parameters.{words}"


@pytest.mark.parametrize("stop", [[311], [4, -1]])
def test_a_stop_id_outside_of_the_vocabulary(model: Make, stop: list[int]) -> None:
    words = rf"stop: ids must lie in \[0, 311\), found {stop[-1]}, which no row would ever have"
    with pytest.raises(ValueError, match=words):
        greedy(model(), IDS, stop=stop)


@pytest.mark.parametrize("per_token", [None, True])
def test_labels_of_which_none_counts(model: Make, per_token: bool | None) -> None:
    words = "labels: all are -100, expected one that counts: the mean loss of none is no number"
    made = model()
    call = made if per_token is None else partial(made.classify, per_token=per_token)
    with pytest.raises(ValueError, match=words):
        call(IDS, ANSWER, labels=[[-100, -100]])


RAGGED: list[Any] = [[6, 5, 17], [6]]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"input_ids": RAGGED}, "input_ids"),
        ({"decoder_input_ids": RAGGED}, "decoder_input_ids"),
        ({"attention_mask": RAGGED}, "attention_mask"),
        ({"position_ids": RAGGED}, "position_ids"),
        ({"labels": RAGGED}, "labels"),
        ({"labels": RAGGED, "decoder_input_ids": None}, "labels"),
    ],
)
def test_rows_of_several_lengths(model: Make, given: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected rows of one length, found rows of 1, 3; pad them"):
        model()(**{"input_ids": IDS, "decoder_input_ids": ANSWER} | given)


def test_what_is_no_array_at_all(model: Make) -> None:
    with pytest.raises(ValueError, match=r"^input_ids: expected an array of numbers, found list: "):
        model().encode([[1, [2]]])
