"""`check`: a stranger's dump is judged: what conforms, what deviates, what is incomplete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumping import TINY, Calls, case_of, edit, tiny, write
from processes import python

pytest.importorskip("rich", reason="needs rich: the report is printed with it")

from command_line import Check
from dumping import LAYER, at, without

from conformance.activations import Dump
from conformance.errors import PeerUnavailable
from conformance.exchange.geometry import fields_of
from conformance.exchange.reading import Tensors
from conformance.peers.folder import create
from conformance.peers.protocol import Skip
from t5g2ref import bundled


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("case", ["short", "padded-left-cached", "image", "sequence-multi", "loss", "second-source"])
def test_an_honest_dump_conforms(tmp_path: Path, case: str, full: bool, check: Check) -> None:
    status, lines, _ = check(write(tmp_path, case, full=full), case=case)
    assert (status, lines[-1]) == (0, "VERDICT: CONFORMS (on 1 of 25 cases)")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(tmp_path: Path, dtype: Any, check: Check) -> None:
    assert check(write(tmp_path, "short", dtype=dtype))[0] == 0


def test_half_types_stored_wide(tmp_path: Path, check: Check) -> None:
    def widened(calls: Calls) -> None:
        for call in calls:
            call |= {n: v if v.dtype.kind == "i" else v.astype(np.float32) for n, v in call.items()}

    folder = write(tmp_path, "short", dtype="bfloat16", change=widened)
    status, lines, _ = check(folder)
    assert status == 0
    assert "declares bfloat16 and shows float32 at 16 taps, first encoder.text_model.inputs_embeds" in "\n".join(lines)
    edit(folder, lambda document: document.update(stored={"*": "float32"}))
    assert check(folder)[0] == 0


def test_wide_values_of_no_half_type(tmp_path: Path, check: Check) -> None:
    """They have more bits than the type: they are judged as they are, and it is said."""

    def wide(calls: Calls) -> None:
        calls[0][LAYER] = calls[0][LAYER].astype(np.float32) * np.float32(1.0001)

    status, lines, _ = check(write(tmp_path, "short", dtype="bfloat16", change=wide, stored={"*": "float32"}))
    assert status == 0
    assert f"shows float32 at 1 taps, first {LAYER}: judged as shown" in "\n".join(lines)


def test_masks_as_bytes(tmp_path: Path, check: Check) -> None:
    def bytewise(calls: Calls) -> None:
        for call in calls:
            call |= {n: v.astype(np.uint8) for n, v in call.items() if v.dtype == bool}

    folder = write(tmp_path, full=True, change=bytewise)
    status, lines, _ = check(folder)
    assert status == 1
    assert "expected bool, found uint8" in "\n".join(lines)
    edit(folder, lambda document: document.update(stored={"*.mask": "uint8"}))
    assert check(folder)[0] == 0


def test_declared_layouts_and_names(tmp_path: Path, check: Check) -> None:
    def laid(calls: Calls) -> None:
        for call in calls:
            rows = call.pop(LAYER)
            call["residual/3"] = np.ascontiguousarray(rows.transpose(2, 1, 0))

    def named(document: dict[str, Any]) -> None:
        for entry in document["cases"]["short"]:
            names = Tensors.open(tmp_path, entry["file"]).entries
            entry["taps"] = {LAYER if name == "residual/3" else name: name for name in names}
        document["layouts"] = {"decoder.layers.?": "B T D", LAYER: "D T B"}  # the very name goes before a pattern

    folder = write(tmp_path, change=laid)
    edit(folder, named)
    assert check(folder)[0] == 0


def test_packed_rows(tmp_path: Path, check: Check) -> None:
    keep = case_of(tiny(), "padded-right").runs[0]
    pairs = {"encoder.": keep.encoder_valid, "decoder.": keep.decoder_valid, "logits": keep.decoder_valid}

    def packed(calls: Calls) -> None:
        for name, value in calls[0].items():
            if not name.endswith("ids"):
                calls[0][name] = value[next(mask for start, mask in pairs.items() if name.startswith(start))]

    folder = write(tmp_path, "padded-right", change=packed, layouts={"logits": "valid V", "*": "valid D"})
    assert check(folder, case="padded-right")[0] == 0


def test_what_padded_rows_hold_does_not_matter(tmp_path: Path, check: Check) -> None:
    keep = case_of(tiny(), "padded-left").runs[0].encoder_valid

    def noise(calls: Calls) -> None:
        for name, value in calls[0].items():
            if name.startswith("encoder."):
                calls[0][name] = np.where(keep[..., None], value, np.float32(7))

    assert check(write(tmp_path, "padded-left", change=noise), case="padded-left")[0] == 0


def test_a_dump_s_card_says_how_to_judge_it_again(tmp_path: Path, check: Check) -> None:
    folder = write(tmp_path / "dump", change=at(LAYER, lambda x: x * 2))
    page, told = tmp_path / "page.html", f"check {folder} --ckpt {TINY} --case short --detail"
    assert check(folder, "--html", str(page))[0] == 1
    assert f"<pre>python -m conformance {told}</pre>" in page.read_text(encoding="utf-8")


def test_one_of_two_bundled_checkpoints(tmp_path: Path, check: Check) -> None:
    status, lines, _ = check(write(tmp_path, checkpoint="tiny"), ckpt="tiny")
    assert (status, lines[-1]) == (0, "VERDICT: CONFORMS (on 1 of 25 cases)")


def test_reports_are_written(tmp_path: Path, check: Check) -> None:
    check(write(tmp_path / "dump"), "--json", str(tmp_path / "found.json"))
    document = json.loads((tmp_path / "found.json").read_text())
    assert document["verdict"] == "CONFORMS"
    assert document["environment"]["stranger"] == "1.0"
    assert [j["peer"] for j in document["judgements"]] == ["stranger"]


# What deviates


@pytest.mark.parametrize(
    ("spoil", "tap", "status", "detail"),
    [
        (at(LAYER, lambda x: x * np.float32(1.001)), LAYER, "values", "times the control's error"),
        (at("logits", lambda x: x[..., ::-1]), "logits", "values", "times the control's error"),
        (at(LAYER, lambda x: np.where(x == x.max(), np.float32("nan"), x)), LAYER, "nan", "found nan at"),
        (at(LAYER, lambda x: x * np.float32("inf")), LAYER, "nan", "expected finite numbers"),
        (at(LAYER, lambda x: x[:, :3]), LAYER, "shape", "expected B T D = (1, 4, 48), found (1, 3, 48)"),
        (at(LAYER, lambda x: x.transpose(1, 0, 2)), LAYER, "shape", "expected B T D = (1, 4, 48), found (4, 1, 48)"),
        (at(LAYER, lambda x: x[None]), LAYER, "shape", "found (1, 1, 4, 48)"),
        (at(LAYER, lambda x: x[:, :0]), LAYER, "shape", "found (1, 0, 48)"),
        (at(LAYER, lambda x: x.astype(np.float16)), LAYER, "dtype", "expected float32, found float16"),
        (at(LAYER, lambda x: x.astype(np.int64)), LAYER, "dtype", "expected float32, found int64"),
        (at("input_ids", lambda x: x + (x == x.max())), "input_ids", "exact", "1 of 5 ids differ"),
        (at("decoder_input_ids", lambda x: x.T), "decoder_input_ids", "shape", "= (1, 4), found (4, 1)"),
        (at("input_ids", lambda x: x.astype(np.float32)), "input_ids", "dtype", "integers, found float32"),
    ],
)
def test_wrong_numbers_are_red(
    tmp_path: Path, spoil: Callable[[Calls], None], tap: str, status: str, detail: str, check: Check
) -> None:
    with np.errstate(invalid="ignore"):
        folder = write(tmp_path, change=spoil)
    code, lines, _ = check(folder)
    assert code == 1
    assert lines[-1].startswith(f"VERDICT: DEVIATES (on 1 of 25 cases) at {tap} ({status};")
    assert detail in "\n".join(lines)


def test_batch_and_tokens_exchanged_undeclared(tmp_path: Path, check: Check) -> None:
    def swapped(calls: Calls) -> None:
        for name, value in calls[0].items():
            if not name.endswith("ids"):
                calls[0][name] = np.ascontiguousarray(value.swapaxes(0, 1))

    folder = write(tmp_path, change=swapped)
    code, lines, _ = check(folder)
    assert code == 1
    assert "expected B T D = (1, 5, 48), found (5, 1, 48)" in "\n".join(lines)
    edit(folder, lambda document: document.update(layouts={"logits": "T B V", "*": "T B D"}))
    assert check(folder)[0] == 0


def test_equal_lengths_exchanged_are_seen_by_their_values(tmp_path: Path, check: Check) -> None:
    def swapped(calls: Calls) -> None:  # N and H would be (8, 10) or (10, 8); of one length each, here the width
        calls[0][LAYER] = np.ascontiguousarray(calls[0][LAYER].reshape(1, 4, 8, 6).swapaxes(2, 3)).reshape(1, 4, 48)

    assert check(write(tmp_path, change=swapped))[0] == 1


def test_an_array_without_its_declared_layout(tmp_path: Path, check: Check) -> None:
    code, lines, _ = check(write(tmp_path, layouts={LAYER: "T B D"}))
    assert code == 1
    assert "declared as T B D = (4, 1, 48), found (1, 4, 48)" in "\n".join(lines)
    assert f"at {LAYER} (shape;" in lines[-1]


def test_a_tap_left_out_of_one_call(tmp_path: Path, check: Check) -> None:
    tap = "decoder.layers.0.self_attn.q_proj"
    folder = write(tmp_path, "eoi-cached", full=True, change=without(tap, call=2))
    code, lines, _ = check(folder, case="eoi-cached")
    assert code == 1
    assert f"at {tap} (missing;" in lines[-1]


# What is incomplete


@pytest.mark.parametrize("tap", ["input_ids", "decoder_input_ids", "encoder.text_model.inputs_embeds", LAYER, "logits"])
def test_less_than_the_least(tmp_path: Path, tap: str, check: Check) -> None:
    code, lines, _ = check(write(tmp_path, change=without(tap)))
    assert code == 3
    assert lines[-1].startswith("VERDICT: INCOMPLETE")
    assert tap in "\n".join(lines)


def test_nothing_at_all(tmp_path: Path, check: Check) -> None:
    code, lines, _ = check(write(tmp_path, change=lambda calls: calls[0].clear()))
    assert code == 3
    assert "lacks 1 of what every dump has to show: logits (call 0)" in " ".join("\n".join(lines).split())


def test_less_than_the_least_and_wrong(tmp_path: Path, check: Check) -> None:
    def both(calls: Calls) -> None:
        without("logits")(calls)
        at(LAYER, lambda x: x * np.float32(1.01))(calls)

    code, lines, _ = check(write(tmp_path, change=both))
    assert code == 1
    assert f"at {LAYER} (values;" in lines[-1]


def test_cases_that_are_not_there(tmp_path: Path, check: Check) -> None:
    code, lines, _ = check(write(tmp_path), case="")
    assert code == 3
    text = "\n".join(lines)
    assert text.count("the dump does not hold this case") >= 20
    assert "window" in text


def test_a_case_left_out_says_why(tmp_path: Path, check: Check) -> None:
    folder, page = write(tmp_path, skipped={"window": "no windows yet, https://example.org/1"}), tmp_path / "page.html"
    code, lines, _ = check(folder, "--case", "window", "--html", str(page))
    assert code == 3
    assert lines[-1] == (
        "VERDICT: INCOMPLETE (on 2 of 25 cases) - stranger skips case window: no windows yet, https://example.org/1"
    )
    assert 'no windows yet, <a href="https://example.org/1"' in page.read_text(encoding="utf-8")


# The peer by itself


def test_a_dump_as_a_peer(tmp_path: Path) -> None:
    target = tiny()
    peer = create(write(tmp_path))
    peer.open(target)
    with Dump() as dump:
        peer.run(case_of(target, "short"), dump)
        assert LAYER in peer.taps
        assert "decoder.norm" not in peer.taps
        assert dump.get(0, LAYER) is not None
        with pytest.raises(Skip, match="does not hold this case"):
            peer.run(case_of(target, "window"), dump)
    assert peer.versions() == {"stranger": "1.0"}
    peer.close()
    with pytest.raises(PeerUnavailable, match="no such folder"):
        create(tmp_path / "nowhere")


def test_the_other_bundled_checkpoint_is_another(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="give the --ckpt that was exported"):
        create(write(tmp_path, checkpoint="tiny")).open(tiny(str(bundled("tiny-even"))))


def test_a_process_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path, change=at(LAYER, lambda x: x + 1))
    arguments = ["check", str(folder), "--ckpt", TINY, "--case", "short"]
    done = python("-m", "conformance", *arguments)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(f"VERDICT: DEVIATES (on 1 of 25 cases) at {LAYER}")
    assert "Traceback" not in done.stdout + done.stderr


# Of which configuration


def made_with(**other: Any) -> dict[str, Any]:
    return {"name": TINY, "config": {**fields_of(tiny().config), **other}}


def test_a_dump_of_this_configuration_conforms_without_a_note(tmp_path: Path, check: Check) -> None:
    assert not any("configuration" in line for line in check(write(tmp_path, checkpoint=made_with()))[1])
    told = "the dump of stranger does not say with which configuration it was made: that was not checked"
    assert any(told in line for line in check(write(tmp_path, checkpoint=TINY))[1])


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("decoder.rope_parameters.full_attention.rope_theta", 1e4, "10000.0, the checkpoint has 52000.0"),
        ("decoder.layer_types[2]", "sliding_attention", "'sliding_attention', the checkpoint has 'full_attention'"),
        ("decoder.final_logit_softcapping", None, "None, the checkpoint has 30.0"),
        ("encoder.text_config.attn_logit_softcapping", 0, "0, the checkpoint has None"),
        ("has_vision", 1, "1, the checkpoint has True"),
        ("decoder.alibi", True, "True, the checkpoint has no such field"),
    ],
)
def test_a_dump_of_another_configuration_is_refused(
    tmp_path: Path, name: str, value: Any, told: str, check: Check
) -> None:
    """The weights are the same, and every value would be another: no tap is blamed."""
    folder = write(tmp_path, checkpoint=made_with(**{name: value}))
    status, _, err = check(folder)
    assert status == 2
    assert err == f"conformance: dump {folder}: it was made with {name} {told}; give the --ckpt that was exported\n"


def test_several_fields_that_differ_are_counted(tmp_path: Path, check: Check) -> None:
    other = made_with(**{"eoi_token_index": 300, "decoder.sliding_window": 17})
    assert "has 18; 2 fields differ in all; give" in check(write(tmp_path, checkpoint=other))[2]
