"""Checkpoints as people have them: other layouts of the same model give its very bits, and what is none is named.

A row is what was done to a plain checkpoint, and the sentence that its owner sees; "" where there is nothing to say.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import Change, Flat, changed, encoder_alone, renamed, text_alone, text_alone_and_said
from helpers import same_bits

import t5g2ref
from t5g2ref import params
from t5g2ref.checkpoint.folder import Checkpoint, WeightsError, load
from t5g2ref.command_line import main
from t5g2ref.notes import Note

TABLE, EOI = "model.encoder.embed_tokens.weight", "model.encoder.embed_tokens.eoi_embedding"
HEAD = "lm_head.out_proj.weight"
QUERY = "model.decoder.layers.0.self_attn.q_proj.weight"
IDS, ANSWER = [[33, 5, 17, 42, 301]], [[33, 8]]


def opened(folder: Path) -> tuple[t5g2ref.T5Gemma2, list[str]]:
    """The model, and what was said of its files."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = t5g2ref.load(folder)
    assert all(w.category is Note for w in caught)
    return model, [str(w.message) for w in caught]


# Other layouts of the same model


def _prefix(prefix: str) -> Change:
    return lambda flat, raw: renamed(flat, lambda name: prefix + name)


def _table_under_the_head(flat: Flat, raw: Flat) -> None:
    flat[HEAD] = flat.pop(TABLE)


def _table_under_a_plain_head(flat: Flat, raw: Flat) -> None:
    flat["lm_head.weight"] = flat.pop(TABLE)


def _tables_of_the_decoder(flat: Flat, raw: Flat) -> None:
    flat["model.decoder.embed_tokens.weight"] = flat.pop(TABLE)
    flat["model.decoder.embed_tokens.eoi_embedding"] = flat.pop(EOI)


def _not_tied(flat: Flat, raw: Flat) -> None:
    flat[HEAD] = flat[TABLE].copy()
    raw["tie_word_embeddings"] = raw["decoder"]["tie_word_embeddings"] = False


def _buffers(flat: Flat, raw: Flat) -> None:
    flat["model.encoder.rotary_emb.inv_freq"] = np.ones(7, np.float32)
    flat["model.decoder.rotary_emb.full_attention_original_inv_freq"] = np.ones(5, np.float32)
    flat["model.decoder.layers.0.self_attn.rotary_emb.sliding_attention_inv_freq"] = np.ones(5, np.float32)
    flat["model.encoder.embed_tokens.embed_scale"] = np.array(6.93, np.float32)
    flat["model.encoder.vision_tower.vision_model.embeddings.position_ids"] = np.arange(64)[None]


def _auto(flat: Flat, raw: Flat) -> None:
    raw["dtype"] = "auto"


def _gemma(flat: Flat, raw: Flat) -> None:
    raw["encoder"]["text_config"]["model_type"] = raw["decoder"]["model_type"] = "gemma3_text"


def _no_end(flat: Flat, raw: Flat) -> None:
    raw["decoder"]["eos_token_id"] = raw["encoder"]["text_config"]["eos_token_id"] = raw["eos_token_id"] = None


def _no_pad(flat: Flat, raw: Flat) -> None:
    raw["decoder"]["pad_token_id"] = raw["encoder"]["text_config"]["pad_token_id"] = raw["pad_token_id"] = None


def _pad_above(flat: Flat, raw: Flat) -> None:
    assert raw["pad_token_id"] == raw["decoder"]["pad_token_id"]
    raw["decoder"]["pad_token_id"] = None


def _quantisation_forgotten(flat: Flat, raw: Flat) -> None:
    raw["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}


LAYOUTS: list[tuple[Change, str]] = [
    (_table_under_the_head, ""),
    (_table_under_a_plain_head, ""),
    (_tables_of_the_decoder, ""),
    (_not_tied, "tie_word_embeddings is false, but all tables here are one: files where they differ are refused"),
    (_buffers, ""),
    (_prefix("module."), "all 231 names begin with 'module.', which a wrapper put there: read without it"),
    (_prefix("_orig_mod."), "all 231 names begin with '_orig_mod.', which a wrapper put there: read without it"),
    (
        _prefix("base_model.model."),
        "all 231 names begin with 'base_model.model.', which a wrapper put there: read with",
    ),
    (_prefix("_orig_mod.module."), "all 231 names begin with '_orig_mod.module.', which a wrapper put there"),
    (_auto, ""),
    (_gemma, ""),
    (_no_end, "decoder.eos_token_id is null: no id ends an answer, only its greatest length"),
    (_no_pad, "decoder.pad_token_id is null: 0, the releases', stands in for it"),
    (_pad_above, ""),
    (
        _quantisation_forgotten,
        "quantization_config (bitsandbytes) is not applied: the weights are read as they are stor",
    ),
]


@pytest.mark.parametrize(("change", "words"), LAYOUTS, ids=range(len(LAYOUTS)))
def test_another_layout_is_the_same_model(tmp_path: Path, change: Change, words: str) -> None:
    model, notes = opened(changed(tmp_path / "c", change))
    assert len(notes) == bool(words)
    assert words in "".join(notes)
    pixels = np.linspace(-1, 1, 3 * 106 * 106).reshape(1, 3, 106, 106)
    ids = [[33, *[307] * 16, 5, 301]]
    plain = t5g2ref.load(t5g2ref.bundled("tiny"))
    same_bits(model(ids, ANSWER, pixel_values=pixels).logits, plain(ids, ANSWER, pixel_values=pixels).logits)


def test_a_prefix_of_some_names_is_no_wrapper(tmp_path: Path) -> None:
    def change(flat: Flat, raw: Flat) -> None:
        flat[f"module.{QUERY}"] = flat.pop(QUERY)

    with pytest.raises(WeightsError, match=r"1 missing .*\n.*q_proj.weight: expected \(80, 48\), found nothing"):
        load(changed(tmp_path / "c", change))


def test_a_stale_index_beside_a_single_file(tmp_path: Path) -> None:
    folder = changed(tmp_path / "c", lambda flat, raw: None)
    (folder / "model.safetensors.index.json").write_text("{}")
    words = "model.safetensors.index.json lies beside model.safetensors and is not read; remove the one that is stale"
    assert [words in note for note in opened(folder)[1]] == [True]


# A part of the model


def test_an_encoder_alone(tmp_path: Path) -> None:
    model, notes = opened(changed(tmp_path / "c", encoder_alone))
    assert len(notes) == 1
    assert notes[0].endswith("t5gemma2_encoder: an encoder alone, which can encode and not generate")
    plain = t5g2ref.load(t5g2ref.bundled("tiny"))
    encoded = model.encode(IDS)
    same_bits(encoded.hidden, plain.encode(IDS).hidden)
    for call in (lambda: model(IDS, ANSWER), lambda: model.start(encoded)):
        with pytest.raises(
            ValueError, match="this checkpoint is an encoder alone: call encode, or give one that has a d"
        ):
            call()
    assert params.count(model.config) == params.count(plain.config) - sum(
        int(np.prod(shape)) for name, shape in params.shapes(plain.config).items() if name.startswith("decoder.")
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (text_alone, "no tensor of the vision tower is there: a model of text alone, which takes no pictures"),
        (text_alone_and_said, "there is no vision_config: a model of text alone, which takes no pictures"),
    ],
)
def test_text_alone(tmp_path: Path, change: Change, words: str) -> None:
    model, notes = opened(changed(tmp_path / "c", change))
    assert [note.endswith(words) for note in notes] == [True]
    same_bits(model(IDS, ANSWER).logits, t5g2ref.load(t5g2ref.bundled("tiny"))(IDS, ANSWER).logits)
    with pytest.raises(
        ValueError, match="pixel_values: expected none, since this checkpoint has no vision tower; give"
    ):
        model.encode([[33, *[307] * 16]], pixel_values=np.zeros((1, 3, 106, 106)))


@pytest.mark.parametrize("change", [encoder_alone, text_alone_and_said])
def test_a_part_keeps_its_configuration(tmp_path: Path, change: Change) -> None:
    config = opened(changed(tmp_path / "c", change))[0].config
    assert t5g2ref.Config.from_dict(config.to_dict()) == config


# What is no plain checkpoint


def _with(name: str, dtype: Any = np.uint8) -> Change:
    def change(flat: Flat, raw: Flat) -> None:
        flat[name] = np.zeros(4, dtype)

    return change


def _fp8(flat: Flat, raw: Flat) -> None:
    import ml_dtypes

    flat[QUERY] = flat[QUERY].astype(ml_dtypes.float8_e4m3fn)


FOREIGN: list[tuple[Change, str, str]] = [
    (
        _with(f"{QUERY}.quant_state.bitsandbytes__nf4"),
        "quantised: bitsandbytes NF4",
        "give the checkpoint that it was m",
    ),
    (_with(f"{QUERY}.quant_state.bitsandbytes__fp4"), "quantised: bitsandbytes FP4", "model.dequantize()"),
    (_with(QUERY.replace("weight", "SCB"), np.float32), "quantised: bitsandbytes INT8", "model.dequantize()"),
    (_with(QUERY.replace("weight", "g_idx"), np.int32), "quantised: GPTQ", "model.dequantize()"),
    (_with(QUERY.replace("weight", "qweight"), np.int32), "quantised: GPTQ or AWQ", "model.dequantize()"),
    (_with(QUERY.replace("weight", "weight_packed"), np.int32), "quantised: FP8 or integers", "model.dequantize()"),
    (_fp8, "quantised: FP8", "model.dequantize()"),
    (
        _with(QUERY.replace("weight", "lora_A.weight"), np.float32),
        "LoRA not merged",
        "(PEFT: merge_and_unload()) and s",
    ),
    (_with(QUERY.replace("weight", "base_layer.weight"), np.float32), "LoRA not merged", "merge it into its base"),
]


@pytest.mark.parametrize(("change", "kind", "remedy"), FOREIGN, ids=range(len(FOREIGN)))
def test_what_is_no_plain_checkpoint_is_named(
    tmp_path: Path, change: Change, kind: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(tmp_path / "c", change)
    assert main(["describe", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"t5g2ref: {folder}/model.safetensors: {kind}, as ")
    assert "expected plain weights; " in said
    assert remedy in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            "adapter_model.safetensors",
            "LoRA not merged: has adapter_model.safetensors alone, expected model.safetensors",
        ),
        (
            "model-Q4_0.gguf",
            "has a GGUF file alone, expected model.safetensors .*; give the checkpoint that it was made",
        ),
    ],
)
def test_a_folder_with_something_else(tmp_path: Path, file: str, words: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(WeightsError, match=words):
        Checkpoint.open(tmp_path)
