"""`--layers each-kind`: a checkpoint cut to one layer of each kind, with its own weights; every report says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_cases import GEOMETRIES, geometry
from dumping import TINY
from helpers import same_bits

from conformance.cases.each_kind import CUT, EACH_KIND, cut, layers, told
from conformance.checkpoints import resolve
from conformance.oracle.run_case import models, program
from conformance.report.html.commands import command
from t5g2ref.config import Config
from t5g2ref.params import shapes
from t5g2ref.trace import Trace


@pytest.fixture(params=GEOMETRIES)
def config(request: pytest.FixtureRequest) -> Config:
    return geometry(str(request.param))


def test_each_stack_keeps_one_layer_of_each_kind(config: Config) -> None:
    made, names = cut(config)
    for whole, stack in ((config.encoder, made.encoder), (config.decoder, made.decoder)):
        assert stack.num_hidden_layers == len(set(whole.layer_types))
        assert sorted(stack.layer_types) == sorted(set(whole.layer_types))
    assert made.vision.num_hidden_layers == 1
    small, large = shapes(made), shapes(config)
    assert list(names) == list(small)
    assert all(small[new] == large[old] for new, old in names.items())
    assert Config.from_dict(made.to_dict()) == made, "transformers builds it from this"


def test_the_released_pattern_keeps_the_first_sliding_and_the_first_full_layer() -> None:
    config = geometry("270m")
    assert layers(config)["decoder"] == (0, 5)
    made, names = cut(config)
    assert made.encoder.layer_types == ("sliding_attention", "full_attention")
    assert names["decoder.layers.1.mlp.up_proj.weight"] == "decoder.layers.5.mlp.up_proj.weight"
    assert "layers 0, 5 of 18 of encoder.text_model" in told(config)


def test_an_encoder_alone_and_a_stack_of_one_kind() -> None:
    config = replace(geometry("tiny"), has_decoder=False)
    made, names = cut(config)
    assert not any(name.startswith("decoder.") for name in names)
    assert "decoder" not in told(config)
    assert cut(made)[0] == made, "what is cut stays as it is"


@pytest.mark.parametrize("synthetic", [False, True])
def test_kept_layers_have_their_own_weights(synthetic: bool) -> None:
    (whole,) = resolve(TINY, synthetic=synthetic)
    (target,) = resolve(TINY, synthetic=synthetic, layers=EACH_KIND)
    _, names = cut(whole.config)
    assert target.name == whole.name + CUT
    assert target.folder is None, "no loader of a peer's own can cut"
    assert any("cut to one layer of each kind" in note for note in target.notes)
    for new, old in names.items():
        same_bits(np.asarray(target.weights[new]), np.asarray(whole.weights[old]))


def test_streamed_weights_are_the_same() -> None:
    (target,) = resolve(TINY, synthetic=False, layers=EACH_KIND)
    (streamed,) = resolve(TINY, synthetic=False, layers=EACH_KIND, stream=True)
    for name, value in target.weights.items():
        same_bits(np.asarray(streamed.weights[name], np.float32), np.asarray(value))


def test_the_first_layer_computes_what_it_computes_in_the_whole_model() -> None:
    from conformance.cases.catalogue import build

    shown: list[dict[str, object]] = []
    for chosen in ("all", EACH_KIND):
        (target,) = resolve(TINY, synthetic=False, layers=chosen)
        seen: dict[str, object] = {}

        def keep(name: str, value: object, seen: dict[str, object] = seen) -> object:
            seen[name] = value
            return value

        truth = models(target.config, target.weights, build(target.config)[0], "float32")[0]
        program(build(target.config)[0])(truth, lambda _, keep=keep: Trace(keep))  # type: ignore[misc]
        shown.append(seen)
    first = layers(geometry("tiny"))["encoder.text_model"]
    assert first[0] == 0, "its input is the same in both"
    same_bits(*(np.asarray(seen["encoder.text_model.layers.0"]) for seen in shown))


def test_the_verdict_and_the_files_say_so(run: Callable[..., tuple[int, list[str], str]], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    options = ["--ckpt", TINY, "--layers", EACH_KIND, "--case", "short", "--lane", "fp32", "--once", "--no-progress"]
    status, lines, _ = run(*options, "--peer", "t5g2ref:numpy:float32", "--json", str(path))
    assert status == 0
    assert lines[-1].startswith("VERDICT: CONFORMS on one layer of each kind (on 1 of ")
    document = json.loads(path.read_text())
    assert document["judgements"][0]["target"] == TINY + CUT
    assert any("cut to one layer of each kind" in note for note in document["notes"])
    line = command(document, document["judgements"][0])
    assert f"--ckpt {TINY} --layers each-kind" in line
