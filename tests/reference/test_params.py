"""params: the declared names and shapes against transformers' own, the name map, and the tree."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from geometry import small_config
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.config import Config, preset
from t5g2ref.params import TIED, canonical, count, hub_name, shapes, tree
from t5g2ref.weights import arrays


def torch_shapes(config: Config, name: str) -> dict[str, tuple[int, ...]]:
    import transformers

    model = getattr(transformers, name)(transformers.T5Gemma2Config(**config.to_dict()))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("head", "name"),
    [("lm", "T5Gemma2ForConditionalGeneration"), ("classification", "T5Gemma2ForSequenceClassification")],
)
@pytest.mark.usefixtures("peer_installed")
def test_shapes_are_those_of_transformers(head: Any, name: str) -> None:
    theirs = torch_shapes(small_config(), name)
    ours = shapes(small_config(), head)
    aliases = {alias: ours[source] for alias, source in TIED.items() if head == "lm" or "lm_head" not in alias}
    if not any("vision_model" in key for key in theirs):  # from 5.18 or so on
        assert {hub_name(key, "transformers"): shape for key, shape in (ours | aliases).items()} == theirs
    assert {canonical(key): shape for key, shape in theirs.items()} == ours | aliases


def test_order_and_corners() -> None:
    names = list(shapes(small_config(), "classification"))
    assert names[0] == "encoder.text_model.embed_tokens.weight"
    assert names[-2:] == ["score.out_proj.weight", "score.out_proj.bias"]
    ours = shapes(small_config())
    assert ours["encoder.multi_modal_projector.mm_input_projection_weight"] == (36, 48)  # (vision, text)
    assert ours["encoder.vision_tower.embeddings.patch_embedding.weight"] == (36, 3, 4, 4)
    assert ours["encoder.text_model.layers.2.self_attn.k_proj.weight"] == (42, 48)
    assert ours["decoder.layers.1.self_attn.o_proj.weight"] == (48, 80)
    assert not set(TIED) & set(ours)
    assert set(TIED.values()) <= set(ours)


# The released sizes; KerasHub publishes the same numbers
@pytest.mark.parametrize(("name", "number"), [("270m", 786029296), ("1b", 2115977456), ("4b", 7508928880)])
def test_counts_of_the_releases(name: str, number: int) -> None:
    assert count(preset(name)) == number


@pytest.mark.parametrize(
    ("hub", "newer"),
    [
        ("model.encoder.embed_tokens.weight", "encoder.text_model.embed_tokens.weight"),
        ("model.encoder.embed_tokens.eoi_embedding", "encoder.text_model.embed_tokens.eoi_embedding"),
        ("model.encoder.layers.3.mlp.up_proj.weight", "encoder.text_model.layers.3.mlp.up_proj.weight"),
        ("model.encoder.norm.weight", "encoder.text_model.norm.weight"),
        (
            "model.encoder.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
            "encoder.vision_tower.encoder.layers.1.mlp.fc1.bias",
        ),
        (
            "model.encoder.vision_tower.vision_model.embeddings.patch_embedding.bias",
            "encoder.vision_tower.embeddings.patch_embedding.bias",
        ),
        ("model.encoder.multi_modal_projector.mm_soft_emb_norm.weight",) * 2,
        ("model.decoder.layers.0.self_attn.q_norm.weight", "decoder.layers.0.self_attn.q_norm.weight"),
        ("model.decoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        ("lm_head.out_proj.weight", "lm_head.out_proj.weight"),
        ("score.out_proj.bias", "score.out_proj.bias"),
    ],
)
def test_names(hub: str, newer: str) -> None:
    name = newer.removeprefix("model.")
    for key in (hub, hub.removeprefix("model."), name, hub_name(name, "transformers")):
        assert canonical(key) == name
    assert hub_name(name, "hub") == hub


@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_every_name_comes_back(layout: Any) -> None:
    names = [*shapes(small_config(), "classification"), *TIED]
    keys = [hub_name(name, layout) for name in names]
    assert len(set(keys)) == len(names)
    assert [canonical(key) for key in keys] == names
    with pytest.raises(ValueError, match="'keras'"):
        hub_name(names[0], "keras")  # type: ignore[arg-type]


PARTS = ["model", "encoder", "decoder", "vision_tower", "vision_model", "text_model", "layers", "0", "norm", "weight"]


@given(st.lists(st.sampled_from(PARTS), max_size=8).map(".".join))
def test_canonical_is_idempotent(key: str) -> None:
    assert canonical(canonical(key)) == canonical(key)


def test_tree_is_a_walk_over_the_names() -> None:
    flat = {name: object() for name in shapes(small_config())}
    root = tree(flat)
    assert root.score is None
    assert dict(arrays(root)) == flat
    assert isinstance(root.encoder.text_model.layers, tuple)
    assert (len(root.encoder.text_model.layers), len(root.decoder.layers)) == (5, 6)
    for name, value in flat.items():
        at = root
        for part in name.split("."):
            at = at[int(part)] if isinstance(at, tuple) else getattr(at, part)
        assert at is value


def test_tree_orders_layers_by_number() -> None:
    config = replace(
        small_config(),
        decoder=replace(small_config().decoder, num_hidden_layers=11, layer_types=("full_attention",) * 11),
    )
    names = sorted(shapes(config), reverse=True)
    root = tree({name: name for name in names})
    assert [layer.mlp.up_proj.weight for layer in root.decoder.layers] == [
        f"decoder.layers.{i}.mlp.up_proj.weight" for i in range(11)
    ]


def test_a_classifier_s_tree_has_its_head() -> None:
    flat = {name: object() for name in shapes(small_config(), "classification")}
    root = tree(flat)
    assert root.score is not None
    assert root.score.out_proj.bias is flat["score.out_proj.bias"]


def test_tree_is_read_only_and_says_what_it_has() -> None:
    root = tree({name: name for name in shapes(small_config())})
    mlp = root.decoder.layers[0].mlp
    with pytest.raises(AttributeError, match="gate"):
        _ = mlp.gate  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="cannot assign"):
        mlp.up_proj = mlp.down_proj  # type: ignore[misc]
    with pytest.raises(AttributeError, match="cannot delete"):
        del mlp.up_proj
    with pytest.raises(TypeError):
        root.decoder.layers[0] = None  # type: ignore[index]
    for again in (copy.deepcopy(root), pickle.loads(pickle.dumps(root))):
        assert again.decoder.layers[0].mlp.down_proj.weight == "decoder.layers.0.mlp.down_proj.weight"
    assert repr(mlp) == "Mlp(gate_proj, up_proj, down_proj)"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda flat: flat.pop("decoder.norm.weight"), "'decoder.norm.weight' is missing from the"),
        (
            lambda flat: flat.pop("decoder.layers.1.mlp.up_proj.weight"),
            "'decoder.layers.1.mlp.up_proj.weight' is missing",
        ),
        (lambda flat: flat.update({"decoder.layers.7.norm": 1}), r"'decoder\.layers\.6\..*' is missing"),  # a gap
        (lambda flat: flat.update({"decoder.layers.1.extra": 1}), r"'decoder\.layers\.1\.extra' is no parameter"),
        (lambda flat: flat.update({"lm_head": 1}), r"'lm_head' is no parameter of the model \(1 such names\)"),
    ],
)
def test_tree_refuses_names_that_make_none(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    flat = {name: object() for name in shapes(small_config())}
    change(flat)
    with pytest.raises(ValueError, match=words):
        tree(flat)


def test_shapes_and_classes_are_one() -> None:
    """Every field of every class of weights is a parameter or holds some, and no other name has a shape."""
    flat = {name: object() for name in shapes(small_config(), "classification")}
    assert {name for name, _ in arrays(tree(flat))} == set(flat)
