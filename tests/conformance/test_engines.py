"""Engines in processes of their own: what crosses the border, what is refused, and what each was found to do."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import textwrap
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from dumping import case_of, tiny
from processes import ROOT, python
from safetensors.numpy import load_file, save_file

pytest.importorskip("rich", reason="needs rich: the judge reports with it")

from conformance.checkpoints import resolve
from conformance.commands.command_line import parser
from conformance.commands.request import _usual as usual_checkpoint
from conformance.errors import PeerUnavailable
from conformance.exchange import arrange
from conformance.exchange.manifest import Declared
from conformance.judge.judge import judge
from conformance.peers import boxed
from conformance.peers.engines import ctranslate2, keras_cases, wire
from conformance.peers.engines.keras_hub import Weights
from conformance.peers.find import create, typed
from conformance.report.known import load
from conformance.target import Target
from t5g2ref.params import canonical, shapes

ENGINES = ROOT / "conformance" / "peers" / "engines"
THEIRS = {"ctranslate2", "keras", "keras_hub", "mlx", "mlx_audio"}


@pytest.fixture(scope="module")
def released() -> Target:
    (target,) = resolve("tiny-released", synthetic=False)
    return target


# What an engine's file may need


@pytest.mark.parametrize("path", sorted(ENGINES.glob("*.py")), ids=lambda path: path.stem)
def test_an_engine_needs_numpy_and_itself_alone(path: Path) -> None:
    tops = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            tops.add((node.module or "").split(".")[0])
    assert tops <= set(sys.stdlib_module_names) | {"numpy"} | THEIRS


# Files


def test_files_are_those_of_safetensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "ids": np.array([[1, -2]], np.int64),
        "mask": np.array([[True, False]]),
    }
    wire.write(tmp_path / "ours", arrays)
    found = load_file(tmp_path / "ours")
    assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
        name: (value.dtype, value.tolist()) for name, value in arrays.items()
    }
    half = rng.normal(size=(2, 7)).astype(ml_dtypes.bfloat16)
    save_file({**arrays, "half": half}, tmp_path / "theirs", metadata={"format": "pt"})
    read = wire.read(tmp_path / "theirs")
    assert read.keys() == {*arrays, "half"}
    np.testing.assert_array_equal(read["half"], half.astype(np.float32))
    np.testing.assert_array_equal(read["a"], arrays["a"])


def test_names_of_either_layout(released: Target) -> None:
    """`params.canonical` was written for the loader; this one stands alone, and has to agree."""
    for name in shapes(released.config):
        old = name.replace("encoder.text_model.", "encoder.").replace("vision_tower.", "vision_tower.vision_model.")
        alone = [name.removeprefix("encoder."), old.removeprefix("encoder.")] * name.startswith("encoder.")
        for spelling in (name, f"model.{name}", old, f"model.{old}", *alone):
            assert wire.canonical(spelling) == canonical(spelling) == name


# Names of peers


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ctranslate2:beam", "expected ctranslate2[:translate|score][@PYTHON]"),
        ("keras_hub:mlx", "expected keras_hub[:torch|jax|numpy][:DTYPE][@PYTHON]"),
        ("keras_hub:torch:float64", "expected keras_hub[:torch|jax|numpy][:DTYPE][@PYTHON]"),
        ("mlx_audio:llama", "expected mlx_audio[:irodori|breeze][:DTYPE][@PYTHON]"),
        ("keras_hub@/nowhere/python", "there is no program /nowhere/python; give the Python that has keras_hub"),
    ],
)
def test_names_that_are_refused(name: str, said: str) -> None:
    with pytest.raises(PeerUnavailable, match=r"^peer ") as caught:
        create(name)
    assert str(caught.value) == f"peer {name}: {said}"


@pytest.mark.parametrize("engine", ["ctranslate2", "keras_hub", "mlx_audio"])
def test_an_engine_that_is_not_installed(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxed, "find_spec", lambda name: None)
    with pytest.raises(PeerUnavailable) as caught:
        create(engine)
    (extra,) = re.findall(r'pip install "t5g2ref\[(.+)\]"', str(caught.value))
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(need.startswith(extra) for need in setup["optional-dependencies"][extra]), "its package, by that name"
    assert f"--peer {engine}@PATH/python" in str(caught.value)


def test_an_engine_s_own_python_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    here = sys.executable
    peer = create(f"keras_hub:bfloat16@{here}")
    assert isinstance(peer, boxed.BoxedPeer)
    assert (peer.dtype, peer.checkpoint, peer._argv[0]) == ("bfloat16", "tiny-released", here)
    assert peer._argv[-3:] == ["keras_hub", "jax", "bfloat16"]
    assert typed(f"keras_hub:torch@{here}", "float16") == f"keras_hub:torch:float16@{here}"
    assert [typed(name, "float16") for name in ("keras_hub:bfloat16", "ctranslate2", "transformers:sdpa:float32")] == [
        "", "", "",
    ]  # fmt: skip


def test_engines_are_judged_on_released_settings_unasked() -> None:
    engine, other = SimpleNamespace(checkpoint="tiny-released"), SimpleNamespace()
    assert usual_checkpoint([other]) == "tiny"
    assert usual_checkpoint([other, engine]) == "tiny-released"
    assert parser().parse_args([]).ckpt is parser().parse_args(["run"]).ckpt is None
    assert parser().parse_args(["run", "--ckpt", "270m"]).ckpt == "270m"
    assert parser().parse_args(["selftest"]).ckpt == parser().parse_args(["export", "x"]).ckpt == "tiny"


# A process that is no engine, with the engines' own end of the wire

STANDIN = """
    import sys
    sys.path[:0] = {paths!r}
    import numpy as np
    from . import wire

    class Engine:
        def open(self, config, weights, folder):
            import t5g2ref
            wire.refuse("standin", [("eps", config["decoder"]["rms_norm_eps"], {eps})])
            self.model = t5g2ref.load({folder!r}, "float32")
            self.seen = sorted(weights)
            return {{"name": "standin", "dtype": "float32", "versions": {{}}, "taps": ["logits"], "lacks": ["images"]}}

        def run(self, case):
            if case.name == "eoi":
                raise wire.Skipped("not today")
            print("noise that no answer may hold")
            run = case.runs[0]
            logits = self.model(run["input_ids"], run["decoder_input_ids"]).logits
            return [{{"logits": wire.kept(np.asarray(logits, np.float32) * {factor}, case, 0)}}]

    def main(arguments):
        assert arguments == ["translate"], arguments
        wire.serve(Engine())
"""


def standin(
    folder: Path, monkeypatch: pytest.MonkeyPatch, target: Target, factor: float = 1.0, eps: float = 1e-6
) -> boxed.BoxedPeer:
    """A peer whose engine is the reference, wrong by a factor."""
    for name in ("__init__", "wire"):
        shutil.copy(ENGINES / f"{name}.py", folder)
    code = STANDIN.format(paths=[str(ROOT), *filter(None, sys.path)], folder=str(target.folder), factor=factor, eps=eps)
    (folder / "ctranslate2.py").write_text(textwrap.dedent(code))
    monkeypatch.setattr(boxed, "ENGINES", folder)
    monkeypatch.setattr(boxed, "find_spec", lambda name: True)
    peer = boxed.find("ctranslate2")
    assert peer is not None
    return peer


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (1.001, False)])
def test_a_right_engine_passes_and_a_wrong_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: Target, factor: float, passed: bool
) -> None:
    peer = standin(tmp_path, monkeypatch, released, factor)
    peer.open(released)
    try:
        for name in ("short", "padded-right"):  # the second with fewer logits than positions, and masks it ignores
            judged = judge(peer, released, case_of(released, name), repeat=False)
            assert not judged.error
            assert [(f.tap, f.passed) for f in judged.local] == [("logits", passed and name == "short")]
        skipped = judge(peer, released, case_of(released, "eoi"), repeat=False)
        assert skipped.skipped == "not today"
        assert (peer.called, peer.lacks) == ("standin", ("images",))
    finally:
        peer.close()


def test_a_setting_that_it_has_not_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: Target) -> None:
    peer = standin(tmp_path, monkeypatch, released, eps=1e-5)
    with pytest.raises(
        PeerUnavailable, match="standin cannot set eps: asked 1e-06, it has 1e-05; --ckpt tiny-released"
    ):
        peer.open(released)


def test_a_case_s_taps_are_listed_once(monkeypatch: pytest.MonkeyPatch, released: Target) -> None:
    """They were listed for each array, which took 25 of the 27 seconds of a case of nine calls."""
    made: list[str] = []
    plain = arrange.plan_of

    def counted(config: Any, case: Any) -> Any:
        made.append(case.name)
        return plain(config, case)

    monkeypatch.setattr(arrange, "plan_of", counted)
    case = case_of(released, "decoder-steps")
    shower = arrange.Shower(Declared("port", "float32"), released.config, case)
    plans = [shower._plan(call) for call in range(len(case.calls)) for _ in range(2)]
    assert made == ["decoder-steps"]
    expected = [{tap.name for n, tap in plain(released.config, case) if n == call} for call in range(len(case.calls))]
    assert [set(plan) for plan in plans[::2]] == [set(plan) for plan in plans[1::2]] == expected


def test_settings_are_one_where_float32_holds_one() -> None:
    assert wire.same(1e-6, float(np.float32(1e-6)))
    assert wire.same(None, None)
    assert not wire.same(10000.0, 10001.0)
    assert not wire.same(None, 30.0)


# CTranslate2, without the package


def test_rows_are_given_without_their_padding() -> None:
    ids = np.array([[5, 6, 7], [8, 9, 0]])
    assert ctranslate2.rows(ids, None) == [["5", "6", "7"], ["8", "9", "0"]]
    assert ctranslate2.rows(ids, np.array([[1, 1, 1], [1, 1, 0]])) == [["5", "6", "7"], ["8", "9"]]
    with pytest.raises(wire.Skipped, match="padded on the left"):
        ctranslate2.rows(ids, np.array([[1, 1, 1], [0, 1, 1]]))


def test_ctranslate2_s_settings_are_read_from_what_was_built(released: Target) -> None:
    """A specification that holds the encoder's eps for both stacks, no query scale, and another theta."""
    config = ctranslate2.settings(released.config.to_dict())
    config.decoder.rms_norm_eps, config.decoder.query_pre_attn_scalar = 1e-5, 25
    layers = []
    for kind in config.decoder.layer_types:
        rope, sliding = config.decoder.rope_parameters[kind], kind == "sliding_attention"
        layers.append(SimpleNamespace(self_attention=SimpleNamespace(
            queries_scale="__optional", rotary_base=rope["rope_theta"], rotary_scaling_factor=rope.get("factor", 1.0),
            sliding_window=config.decoder.sliding_window * sliding,
        )))  # fmt: skip
    spec = SimpleNamespace(
        config=SimpleNamespace(layer_norm_epsilon=1e-6),
        encoder=SimpleNamespace(layer=layers),
        decoder=SimpleNamespace(layer=layers, final_logit_softcapping="__optional"),
    )
    layers[5].self_attention.rotary_base = 10000.0
    wrong = [name for name, asked, has in ctranslate2.compared(config, spec) if not wire.same(asked, has)]
    theta = "rope theta of full_attention"
    assert wrong == [f"encoder {theta}", "decoder.rms_norm_eps", "decoder.query_pre_attn_scalar", f"decoder {theta}"]


# KerasHub, without the package


def test_pictures_stand_in_rows_of_one_length() -> None:
    config = {"encoder": {"vision_config": {"image_size": 2}, "mm_tokens_per_image": 2}, "image_token_index": 9}
    pictures = np.arange(3 * 3 * 4, dtype=np.float32).reshape(3, 3, 2, 2)
    run = {"input_ids": np.array([[1, 9, 9, 9, 9], [9, 9, 1, 1, 1]]), "pixel_values": pictures}
    given = keras_cases.inputs(run | {"decoder_input_ids": np.array([[1], [1]])}, config)
    assert given["vision_indices"].tolist() == [[1, 2, 3, 4], [0, 1, 0, 0]]
    assert given["real"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(given["images"][1, 0], pictures[2].transpose(1, 2, 0))
    assert not given["images"][1, 1].any()
    text = keras_cases.inputs(
        {"input_ids": run["input_ids"][:, :1] * 0, "decoder_input_ids": np.array([[1], [1]])}, config
    )
    assert text["images"].shape == (2, 1, 2, 2, 3)
    assert text["real"].tolist() == []


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([0, 0, 1, 1, 0, 0], [[1, 1, 1, 0]]),  # a window of 2, at position 3 of 6
        ([0, 1, 1, 1, 0, 0], [[0, 1, 1, 1, 0, 0, 1, 0]]),  # one too many: all slots are shown, and the shape is wrong
        ([0, 0, 1, 1, 1, 0], [[0, 0, 1, 1, 1, 0, 1, 0]]),  # one that is not filled yet
    ],
)
def test_unseen_slots_of_a_cache_are_left_out(own: list[int], expected: list[list[int]]) -> None:
    config = {"decoder": {"layer_types": ["sliding_attention"], "sliding_window": 2}}
    additive = (1.0 - np.array([[*own, 1, 0]], np.float32))[None, None] * -1e9
    ids = {"encoder_token_ids": np.zeros((1, 2), int), "decoder_token_ids": np.zeros((1, 6), int), "real": np.array([])}
    taken = {"decoder.layers.0.self_attn.mask": additive}
    out = keras_cases.arranged(taken, ids, (3, 4), True, config)["decoder.layers.0.self_attn.mask"]
    assert out.dtype == np.bool_
    assert out[0].tolist() == np.array(expected, bool).tolist()


def test_the_converter_is_given_tensors_by_the_names_of_the_hub() -> None:
    class Variable:
        shape = (3, 2)

        def assign(self, value: Any) -> None:
            self.value = value

    variable, matrix = Variable(), np.arange(6.0).reshape(2, 3)
    loader = Weights({"encoder.text_model.layers.0.mlp.up_proj.weight": matrix})
    loader.port_weight(variable, "encoder.layers.0.mlp.up_proj.weight", lambda array, shape: array.T.reshape(shape))
    np.testing.assert_array_equal(variable.value, matrix.T)


# The engines themselves


@pytest.mark.skipif(find_spec("ctranslate2") is None, reason="needs ctranslate2: an engine under judgement")
def test_ctranslate2_is_right_below_its_windows_alone(released: Target) -> None:
    peer = create("ctranslate2")
    peer.open(released)
    try:
        assert judge(peer, released, case_of(released, "short"), repeat=False).passed
        judged = judge(peer, released, case_of(released, "window"), repeat=False)
        assert not judged.passed
        assert judged.local[0].tap == "logits"
    finally:
        peer.close()
    with pytest.raises(PeerUnavailable, match=r"decoder\.rms_norm_eps: asked 0.005, it has 0.002"):
        create("ctranslate2").open(tiny())


@pytest.mark.skipif(find_spec("ctranslate2") is None, reason="needs ctranslate2: the script asks it alone")
def test_the_report_to_ctranslate2_says_what_its_script_prints() -> None:
    """A release that mends something makes this fail: then the report is out of date."""
    done = python(str(ROOT / "conformance/published/findings/ctranslate2_t5gemma2.py"))
    assert done.returncode == 1, done.stderr
    said = [line.partition(": ")[0] for line in done.stdout.splitlines()[1:]]
    report = (ROOT / "conformance/published/findings/ctranslate2_t5gemma2.md").read_text(encoding="utf-8")
    assert [line.partition(": ")[0] for line in report.splitlines() if line.startswith(("WRONG", "right"))] == said
    assert len(said) == 8


HAS_KERAS = find_spec("keras_hub") is not None or "T5G2REF_KERAS_PYTHON" in os.environ


@pytest.mark.slow
@pytest.mark.skipif(not HAS_KERAS, reason="needs keras_hub, here or in the Python of $T5G2REF_KERAS_PYTHON")
def test_keras_hub_lacks_the_end_of_image_row_in_a_cached_decoder_alone(released: Target) -> None:
    python = os.environ.get("T5G2REF_KERAS_PYTHON", "")
    peer = create(f"keras_hub{'@' * bool(python)}{python}")
    peer.open(released)
    try:
        for name, wrong in (
            ("short", []),
            ("image", []),
            ("eoi-cached", ["decoder.embed_tokens"]),
        ):
            judged = judge(peer, released, case_of(released, name), repeat=False)
            assert not judged.error
            assert sorted({f.tap for f in judged.local if not f.passed}) == wrong
    finally:
        peer.close()


MLX = os.environ.get("T5G2REF_MLX_PYTHON", "")


@pytest.mark.skipif(not (MLX or find_spec("mlx_audio")), reason="needs mlx_audio, here or in $T5G2REF_MLX_PYTHON")
@pytest.mark.parametrize("port", ["irodori", "breeze"])
def test_the_encoders_of_mlx_audio_are_right_but_for_their_rounding(port: str) -> None:
    (encoder,) = resolve("tiny-encoder", synthetic=False)
    for dtype, wrong in (("float32", set()), ("bfloat16", {"D11", "D12"})):
        peer = create(f"mlx_audio:{port}:{dtype}{'@' * bool(MLX)}{MLX}")
        peer.open(encoder)
        try:
            judged = judge(peer, encoder, case_of(encoder, "short"), repeat=False)
            assert not judged.error
            assert {s.defect for s in judged.named if s.named} == wrong
            assert judged.passed == (not wrong)
        finally:
            peer.close()


def test_the_encoder_alone_is_that_of_the_released_settings(released: Target) -> None:
    (encoder,) = resolve("tiny-encoder", synthetic=False)
    assert (encoder.config.has_decoder, encoder.config.has_vision) == (False, True)
    assert encoder.config.encoder == released.config.encoder
    assert encoder.weights
    for name, value in encoder.weights.items():
        assert name.startswith("encoder.")
        np.testing.assert_array_equal(value, released.weights[name])
    peer = create(f"mlx_audio@{sys.executable}")
    assert isinstance(peer, boxed.BoxedPeer)
    assert (peer.checkpoint, peer._argv[-3:]) == ("tiny-encoder", ["mlx_audio", "irodori", "float32"])
    assert typed(f"mlx_audio:breeze@{sys.executable}", "bfloat16") == f"mlx_audio:breeze:bfloat16@{sys.executable}"


# What is known of them


@pytest.mark.parametrize("path", sorted((ROOT / "conformance/published/known").glob("*.toml")), ids=lambda p: p.stem)
def test_known_deviations_name_taps_and_cases_that_there_are(path: Path, released: Target) -> None:
    known = load(path)
    known.check(
        resolve("tiny-encoder", synthetic=False) if path.stem in ("mlx_audio", "transformers_encoder") else [released]
    )
    for entry in known.entries:
        assert re.split("[:*]", entry.peer)[0] == path.stem.removesuffix("_encoder").removesuffix("_generate")
