"""The anatomy that `describe` draws: its sums are the checkpoint's, and text and JSON say the same."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

import t5g2ref
from t5g2ref import params
from t5g2ref.checkpoint.folder import Checkpoint
from t5g2ref.command_line import main
from t5g2ref.commands.anatomy import Anatomy, ranges, width
from t5g2ref.commands.drawn_tree import coloured, short
from t5g2ref.config import PRESETS

EVERY = ("demo", "tiny", "tiny-even", "tiny-released", "tiny-encoder")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["describe", *arguments]) == 0
    return capsys.readouterr().out


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("children", ()):
        yield from nodes(child)


@pytest.mark.parametrize("name", EVERY)
def test_the_sums_are_the_checkpoint_s(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(told(capsys, name, "--json"))
    folder = t5g2ref.bundled(name)
    checkpoint = Checkpoint.open(folder)
    stored = {tensor: checkpoint.shape(tensor) for tensor in checkpoint.tensors if tensor not in params.TIED}
    assert found["tree"]["parameters"] == found["parameters"] == sum(map(math.prod, stored.values()))
    sizes = {tensor: width(checkpoint.dtype(tensor)) for tensor in stored}
    assert found["bytes"] == sum(math.prod(shape) * sizes[tensor] for tensor, shape in stored.items())


def test_a_node_is_its_children_times_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    every = list(nodes(json.loads(told(capsys, "tiny", "--json"))["tree"]))
    assert len(every) > 100
    for node in every:
        if "children" in node:
            for size in ("parameters", "bytes"):
                inner = sum(child[size] for child in node["children"])
                assert node[size] == inner * max(1, len(node.get("layers", ())))


def test_flops_by_hand() -> None:
    """Of the 270m at 1024: the source's matrices once in each layer, and the decoder's keys and values of it."""
    config = PRESETS["270m"]
    tree = Anatomy(config, dict.fromkeys(params.shapes(config), "bfloat16"), 1024).tree()
    wide, heads, kv, ffn = 640, 4 * 256, 256, 2048
    matrices = wide * (2 * heads + 2 * kv + 3 * ffn)
    assert tree.flops["source"] == 18 * 2 * (matrices + wide * 2 * kv) + 4 * heads * (15 * 512 + 3 * 1024)
    own = 15 * (512 + 1024) + 3 * (1024 + 1024)
    assert tree.flops["output"] == 18 * 2 * matrices + 4 * heads * own + 2 * 262_144 * wide
    assert tree.flops["picture"] == 2 * 1152 * wide
    assert tree.bytes == 2 * tree.parameters


def test_the_text_is_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    text, found = told(capsys, "tiny"), json.loads(told(capsys, "tiny", "--json"))
    for node in nodes(found["tree"]):
        if node["parameters"] and "shape" in node:
            row = rf"{re.escape(node['name'])} +{' x '.join(map(str, node['shape']))} +{node['parameters']:,} "
            assert re.search(row, text), node["name"]
        elif "layers" in node:
            assert re.search(rf": {ranges(node['layers'])} +{node['parameters']:,} ", text)
    for stage, flops in found["flops"]["token"].items():
        assert short(flops) in text, stage


def test_lists_are_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(told(capsys, "tiny-encoder", "--json", "--params", "--taps"))
    assert found["params"]["encoder.text_model.norm.weight"] == [40]
    assert "encoder.text_model.norm" in found["taps"]
    assert "decoder" not in found["layers"]


def test_colour_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain = told(capsys, "demo")
    assert "\033" not in plain
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert coloured()
    assert re.sub(r"\033\[\d+m", "", painted := told(capsys, "demo")) == plain != painted
    monkeypatch.setenv("NO_COLOR", "1")
    assert told(capsys, "demo") == plain


def test_a_length_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "demo", "--length", "0"]) == 2
    assert capsys.readouterr().err == "t5g2ref: --length: expected at least 1, found 0\n"


def test_numbers_in_words() -> None:
    assert [short(n) for n in (0, 999, 1000, 1_169_600, 7_508_928_880)] == ["0", "999", "1 k", "1.17 M", "7.51 G"]
    assert short(256, "B") == "256 B"
    assert ranges([0, 1, 2, 4, 7, 8]) == "0-2, 4, 7-8"
