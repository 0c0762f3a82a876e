"""`export --vectors`: every value and distance is what the judge's controls say, and a folder is whole or as it was.

The truth is that of the one-page model; what a token may be off comes from plain arithmetic on the controls.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumping import Array, case_of, recorded, tiny
from helpers import ROUNDOFF
from one_page_model import Naive
from processes import ROOT
from safetensors import safe_open
from safetensors.numpy import load_file

pytest.importorskip("rich", reason="needs rich: the progress bar is made with it")

import t5g2ref
from conformance import __main__ as command
from conformance.cases import catalogue
from conformance.cases.abilities import TEXT, Required
from conformance.cases.case import Case
from conformance.cases.plan import required, validity
from conformance.errors import UsageError
from conformance.exchange import vectors
from conformance.measure import limits
from conformance.oracle import expected
from conformance.oracle.run_case import models, program
from conformance.target import Target
from t5g2ref import bundled, taps
from t5g2ref.dtypes import DType
from t5g2ref.model import T5Gemma2
from t5g2ref.trace import recorder

SCHEMA = json.loads((ROOT / "conformance/report/schema/vectors-1.json").read_text(encoding="utf-8"))
CASES = ("short", "window", "padded-left-cached", "loss", "second-source", "far-positions")
TYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")


def export(*arguments: object) -> int:
    return command.main(["export", "--vectors", *map(str, arguments), "--no-progress"])


def chosen(*names: str) -> list[str]:
    return [word for name in names for word in ("--case", name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made") / "vectors"
    assert export(made, "--ckpt", "tiny", *chosen(*CASES)) == 0
    return made


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny("tiny")


# The document


def test_it_is_of_its_schema(document: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: the schema is checked with it")
    checker = jsonschema.Draft202012Validator(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    checker.validate(document)
    for spoilt in ({"version": 2}, {"types": {}}, {"cases": {"short": {}}}, {"limit": 0}):
        assert not checker.is_valid(document | spoilt), spoilt


def test_it_knows_its_files_and_what_they_are_of(folder: Path, document: dict[str, Any]) -> None:
    files = [document["inputs"], *document["types"].values()]
    assert sorted(os.listdir(folder)) == sorted(["vectors.json", *(entry["file"] for entry in files)])
    for entry in files:
        path = folder / entry["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        with safe_open(path, "np") as stored:
            marks = stored.metadata()
        assert (marks["format"], marks["version"]) == ("t5g2ref-vectors", "1")
        assert marks["weights"] == document["checkpoint"]["fingerprint"]
        assert marks["config"] == document["checkpoint"]["config_fingerprint"]
    assert document["limit"] == limits.LIMITS["cumulative"]
    assert [name.removeprefix("CASE/CALL/TAP") for name in document["names"].values()] == list(PARTS)


def test_another_configuration_has_another_fingerprint(target: Target) -> None:
    from dataclasses import replace

    config = replace(target.config, decoder=replace(target.config.decoder, sliding_window=7))
    one, other = vectors._checkpoint(target), vectors._checkpoint(replace(target, config=config))
    assert one["fingerprint"] == other["fingerprint"]
    assert one["config_fingerprint"] != other["config_fingerprint"]


def test_inputs_are_those_of_the_cases(folder: Path, document: dict[str, Any], target: Target) -> None:
    given, seen = load_file(folder / "inputs.safetensors"), set()
    for name, entry in document["cases"].items():
        for run, said in zip(case_of(target, name).runs, entry["runs"], strict=True):
            for field, tensor in said["inputs"].items():
                assert np.array_equal(given[tensor], getattr(run, field))
                seen.add(tensor)
    assert seen == set(given)


def test_every_call_has_every_tap_that_a_dump_has_to_show(
    folder: Path, document: dict[str, Any], target: Target
) -> None:
    layers = [f"decoder.layers.{i}" for i in range(target.config.decoder.num_hidden_layers)]
    calls = document["cases"]["padded-left-cached"]["calls"]
    assert list(calls[1]["taps"]) == ["decoder.embed_tokens", *layers, "logits"]
    assert [call["decoder"] for call in calls] == [[0, 4], [4, 5], [5, 7]]
    assert calls[0]["taps"]["encoder.text_model.norm"] == ["B T D", [3, 8, 48]]
    for dtype in TYPES:
        stored = load_file(folder / f"{dtype}.safetensors")
        for name, entry in document["cases"].items():
            assert entry["types"] == list(TYPES)
            for call, said in enumerate(entry["calls"]):
                for tap, (_, shape) in said["taps"].items():
                    value, allowed, compared = (stored.pop(f"{name}/{call}/{tap}{of}") for of in PARTS)
                    assert (value.dtype, allowed.dtype, compared.dtype) == (np.float32, np.float32, np.uint8)
                    assert [*compared.shape, value.shape[1]] == shape
                    assert compared.sum() == len(value) == len(allowed) > 0
                    assert np.isfinite(allowed).all()
                    assert (allowed > 0).all()
        assert not stored


PARTS = ("", "@allowed", "@compared")


def test_taps_stand_in_the_order_of_the_computation(folder: Path, document: dict[str, Any]) -> None:
    data = (folder / "float32.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    del header["__metadata__"]
    wanted = [
        f"{name}/{call}/{tap}{of}"
        for name, entry in document["cases"].items()
        for call, said in enumerate(entry["calls"])
        for tap in said["taps"]
        for of in PARTS
    ]
    assert list(header) == wanted


# Values and distances


def test_values_are_those_of_the_one_page_model(folder: Path, target: Target) -> None:
    """It shares no line with the reference: ids go in, logits come out."""
    stored = load_file(folder / "float32.safetensors")
    (run,) = case_of(target, "window").runs
    naive, (ids, own) = Naive(target.config, dict(target.weights)), (run.input_ids, run.decoder_input_ids)
    places = [np.broadcast_to(np.arange(of.shape[1]), of.shape) for of in (ids, own)]
    encoded = naive.encode(ids, np.ones_like(ids), places[0])
    hidden = naive.decode(own, np.ones_like(own), places[1], encoded, np.ones_like(ids))
    for tap, value in (("encoder.text_model.norm", encoded), ("logits", naive.logits(hidden))):
        expected_, allowed, compared = (stored[f"window/0/{tap}{of}"] for of in PARTS)
        off = np.linalg.norm(value[compared == 1] - expected_, axis=-1)
        assert (off <= allowed / 4).all(), "no further than √width's rounding to float32, which the page leaves out"
        assert (off > 0).any()


def walked(target: Target, case: Case, dtype: DType) -> list[list[dict[str, Array]]]:
    """Truth and controls → calls → tap → value, one run after the other."""
    runs = []
    for model in models(target.config, target.rounded(dtype), case, dtype):
        calls: list[dict[str, Array]] = [{} for _ in case.calls]
        program(case)(model, [recorder(call) for call in calls].__getitem__)
        runs.append(calls)
    return runs


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["window", "padded-left-cached"])
def test_a_distance_is_eight_times_what_the_controls_need(
    folder: Path, target: Target, name: str, dtype: DType
) -> None:
    case, stored, u = case_of(target, name), load_file(folder / f"{dtype}.safetensors"), ROUNDOFF[dtype]
    truth, *controls = walked(target, case, dtype)
    table = {tap.name: tap for tap in taps.table(target.config, images=False)}
    checked = 0
    for tap in ("encoder.text_model.layers.2", "encoder.text_model.norm", "logits"):
        relative, rows = [], []
        for call in range(len(case.calls)):
            if tap not in truth[call]:
                continue
            right = truth[call][tap]
            keep = validity(case, call, table[tap], right.shape)
            keep = np.ones(right.shape[:2], bool) if keep is None else keep
            norm = np.linalg.norm(right, axis=-1)[keep]
            error = np.max([np.linalg.norm(run[call][tap] - right, axis=-1)[keep] for run in controls], axis=0)
            relative += list(error / norm)
            rows.append((call, right, keep, norm, error))
        few = len(relative) < limits.FEW_NUMBERS  # then the largest stands for what is typical
        usual = max(relative) if few else float(np.median(relative))
        for call, right, keep, norm, error in rows:
            value, allowed, compared = (stored[f"{name}/{call}/{tap}{of}"] for of in PARTS)
            kept = compared == 1
            assert not (kept & ~keep).any(), "no padding"
            assert kept.sum() == min(keep.sum(), 8 if tap == "logits" else 16)
            assert np.array_equal(value, right[kept].astype(np.float32))
            rounding = np.linalg.norm(value - right[kept], axis=-1)
            wanted = (8 * np.maximum(error, max(usual, u) * norm))[kept[keep]] + rounding
            assert (allowed >= wanted * (1 - 1e-12)).all(), "never less than the judge allows"
            np.testing.assert_allclose(allowed, wanted, rtol=2.0**-22)
            checked += 1
    assert checked >= 3


def test_padding_does_not_count(folder: Path, target: Target) -> None:
    stored = load_file(folder / "float32.safetensors")
    (run,) = case_of(target, "padded-left-cached").runs
    assert run.attention_mask is not None
    assert not run.attention_mask.all()
    for call, mask in (("0/encoder.text_model.layers.0", run.attention_mask), ("0/logits", run.decoder_attention_mask)):
        assert mask is not None
        compared = stored[f"padded-left-cached/{call}@compared"]
        valid = mask[:, : compared.shape[1]] == 1
        assert not (compared & ~valid).any()
        assert np.array_equal(compared.any(axis=1), valid.any(axis=1)), "of each row that has one a token"


def test_of_many_tokens_some_are_kept(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected, "MOST_TOKENS", 99)
    whole = {one.tap.name: one for one in expected.expected_of(target, case_of(target, "window"), "float32")[0]}
    monkeypatch.setattr(expected, "MOST_TOKENS", 3)
    monkeypatch.setattr(expected, "MOST_LOGITS", 2)
    for one in expected.expected_of(target, case_of(target, "window"), "float32")[0]:
        every, last = whole[one.tap.name], one.compared.size - 1
        kept = np.flatnonzero(one.compared)
        assert [kept[0], kept[-1], len(kept)] == [0, last, 2 if one.tap.name == "logits" else 3]
        assert np.array_equal(one.values, every.values[kept]), "the same values and distances as of all of them"
        assert np.array_equal(one.allowed, every.allowed[kept])


def test_what_rounding_could_hide_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "UNCLEAR_ERROR", 4e-3)  # bfloat16's own rounding is 2e-3
    assert export(tmp_path, "--ckpt", "tiny", "--case", "short", "--dtype", "bfloat16") == 0
    entry = json.loads((tmp_path / "vectors.json").read_text())["cases"]["short"]
    stored = load_file(tmp_path / "bfloat16.safetensors")
    assert "logits" in entry["unclear"]["bfloat16"]
    assert "short/0/logits" not in stored
    assert "short/0/encoder.text_model.inputs_embeds" in stored
    assert "note: short in bfloat16: left out, since rounding noise could hide anything" in capsys.readouterr().out


def test_an_overflow_of_a_half_type_is_left_out(target: Target) -> None:
    from dataclasses import replace

    weights = dict(target.weights)
    name = "decoder.layers.2.self_attn.v_proj.weight"
    weights[name] = weights[name] * np.float32(5e4)  # they fit, and what comes of them does not
    wild = replace(target, weights=weights)
    found, unclear = expected.expected_of(wild, case_of(target, "short"), "float16")
    assert "decoder.layers.*" in unclear
    assert {one.tap.name for one in found} >= {"encoder.text_model.norm", "decoder.embed_tokens"}
    assert all(np.isfinite(one.allowed).all() for one in found)
    assert not expected.expected_of(wild, case_of(target, "short"), "float32")[1]
    wilder = replace(target, weights=weights | {name: weights[name] * np.float32(1e4)})
    with pytest.raises(UsageError, match=r"short in float16: .* give --dtype of a wider type"):
        expected.expected_of(wilder, case_of(target, "short"), "float16")


def test_whoever_the_judge_passes_is_near_enough(folder: Path, target: Target) -> None:
    stored = load_file(folder / "float32.safetensors")
    for name in CASES:
        for call, shown in enumerate(recorded(target, case_of(target, name))):
            for tap in [tap for tap in taps.table(target.config, images=False) if required(tap) and tap.name in shown]:
                value, allowed, compared = (stored[f"{name}/{call}/{tap.name}{of}"] for of in PARTS)
                off = np.linalg.norm(shown[tap.name][compared == 1].astype(np.float64) - value, axis=-1)
                assert (off <= allowed).all()


def followed(model: T5Gemma2, entry: dict[str, Any], given: dict[str, Array]) -> list[dict[str, Array]]:
    """A case run by what the page says, from the document and the inputs alone: call → tap → value."""
    calls: list[dict[str, Array]] = [{} for _ in entry["calls"]]
    for found, call in zip(calls, entry["calls"], strict=True):
        run, (first, last), trace = entry["runs"][call["run"]], call["decoder"], recorder(found)
        of = {field: given[tensor] for field, tensor in run["inputs"].items()}
        ids, mask, places = (of.get(f"decoder_{name}") for name in ("input_ids", "attention_mask", "position_ids"))
        if run["derived"]:
            labels = of["labels"]
            ids = np.concatenate([np.full((len(labels), 1), 33), np.where(labels == -100, 31, labels)[:, :-1]], axis=1)
        if first == 0:
            asked = {name: of.get(name) for name in ("attention_mask", "position_ids")}
            cache = model.start(model.encode(of["input_ids"], **asked, trace=trace), trace)
        assert ids is not None
        mask = None if mask is None else mask[:, first:last]  # our cache keeps the earlier part
        places = None if places is None else places[:, first:last]
        hidden, cache = model.decode(ids[:, first:last], cache, mask, places, trace)
        model.logits(hidden[:, -(run["logits_to_keep"] or 0) :], trace)
    return calls


def test_the_document_and_the_inputs_are_enough(folder: Path, document: dict[str, Any]) -> None:
    stored, given = load_file(folder / "float32.safetensors"), load_file(folder / "inputs.safetensors")
    model, judged = t5g2ref.load(bundled("tiny"), "float32"), 0
    assert (model.config.decoder.bos_token_id, model.config.decoder.pad_token_id) == (33, 31)
    for name, entry in document["cases"].items():
        for call, found in enumerate(followed(model, entry, given)):
            for tap, (_, shape) in entry["calls"][call]["taps"].items():
                value, allowed, compared = (stored[f"{name}/{call}/{tap}{of}"] for of in PARTS)
                assert list(found[tap].shape) == shape
                off = np.linalg.norm(found[tap][compared == 1].astype(np.float64) - value, axis=-1)
                assert (off <= allowed).all(), f"{name}/{call}/{tap}"
                judged += 1
    assert judged > 100


# The folder


@pytest.mark.slow
def test_all_text_cases_of_a_checkpoint_fit_into_four_megabytes(tmp_path: Path) -> None:
    """Of the bundled one with the wider windows, and so the longer cases."""
    assert export(tmp_path, "--ckpt", "tiny-even") == 0
    document = json.loads((tmp_path / "vectors.json").read_text())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4_000_000
    built = catalogue.build(tiny("tiny-even").config)
    assert list(document["cases"]) == [case.name for case in built if Required(None, TEXT).covers(case, ())]
    assert document["cases"]["long-rows"]["types"] == ["float32"]
    assert not any(case["unclear"] for case in document["cases"].values())
    assert not {"image", "images", "token", "sequence-single"} & set(document["cases"])


def test_one_type_alone_replaces_all_three(tmp_path: Path) -> None:
    assert export(tmp_path, "--ckpt", "tiny", "--case", "short") == 0
    (tmp_path / "mine.txt").write_text("kept")
    assert export(tmp_path, "--ckpt", "tiny", "--case", "eoi", "--dtype", "float32") == 0
    assert sorted(os.listdir(tmp_path)) == ["float32.safetensors", "inputs.safetensors", "mine.txt", "vectors.json"]
    assert list(json.loads((tmp_path / "vectors.json").read_text())["cases"]) == ["eoi"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "image"], "no case matches; there are: short, window"),
        (["--case", "long-rows", "--dtype", "bfloat16"], "no case matches; there are: short, window"),
        (["--expected"], "leave --expected away"),
        (["--ckpt", "weather"], "no such folder"),
    ],
)
def test_bad_usage(tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path / "new", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_neither_export_takes_the_other_s_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases, made = tmp_path / "cases", tmp_path / "vectors"
    plain = ["--ckpt", "tiny", "--case", "short"]
    assert export(made, *plain, "--dtype", "float32") == 0
    assert command.main(["export", str(cases), *plain, "--no-progress"]) == 0
    assert command.main(["export", str(made), *plain, "--no-progress"]) == 2
    assert export(cases, *plain) == 2
    assert "holds something else than vectors; name another folder, or give --force" in capsys.readouterr().err
    before = sorted(os.listdir(cases))
    assert export(cases, *plain, "--dtype", "float32", "--force") == 0
    assert set(before) < set(os.listdir(cases)), "what was there stays"


def test_the_document_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is, all is; an earlier one goes first."""
    assert export(tmp_path, "--ckpt", "tiny", "--case", "short", "--dtype", "float32") == 0
    replace, moved = os.replace, list[str]()

    def watched(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path:
            assert not (tmp_path / "vectors.json").exists()
            moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    assert export(tmp_path, "--ckpt", "tiny", "--case", "eoi", "--dtype", "float32") == 0
    assert moved == ["float32.safetensors", "inputs.safetensors", "vectors.json"]


def test_an_interruption_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export(tmp_path, "--ckpt", "tiny", "--case", "short") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vectors, "write_text", interrupted)  # all but the document is written
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, "--ckpt", "tiny", "--case", "eoi")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
