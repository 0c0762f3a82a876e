"""T5Gemma 2 in KerasHub: the end-of-image row is missing where the decoder runs with its cache, as `generate` does.

    pip install keras-hub torch numpy
    KERAS_BACKEND=torch python keras_hub_t5gemma2.py

The same ids go through the model twice: in one call, and through `call_decoder_with_cache`. Both are KerasHub's own,
and have to give the same logits. They do for ids without the end-of-image id, and do not with it.
"""

# mypy: ignore-errors
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import keras_hub
import numpy as np
from keras import ops

EOI, VOCABULARY, WIDTH, IMAGE, TOKENS = 60, 64, 24, 16, 4


def model() -> keras_hub.models.T5Gemma2Seq2SeqLM:
    """A small model with random weights, the end-of-image rows included."""
    keras.utils.set_random_seed(0)
    tower = keras_hub.models.Gemma3VisionEncoder if hasattr(keras_hub.models, "Gemma3VisionEncoder") else None
    if tower is None:
        from keras_hub.src.models.gemma3.gemma3_vision_encoder import Gemma3VisionEncoder as tower
    eyes = tower(
        image_size=IMAGE, patch_size=4, num_heads=2, hidden_dim=8, num_layers=1, intermediate_dim=8, output_dim=WIDTH,
        pool_size=2,
    )  # fmt: skip
    stack = {"hidden_dim": WIDTH, "intermediate_dim": 32, "num_layers": 1, "num_attention_heads": 2}
    stack |= {"num_key_value_heads": 1, "head_dim": 8, "layer_types": ["full_attention"]}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in stack.items()}
    backbone = keras_hub.models.T5Gemma2Backbone(
        vocabulary_size=VOCABULARY, **both, query_pre_attn_scalar=8.0, vision_encoder=eyes, eoi_token_index=EOI
    )
    rng = np.random.default_rng(0)
    for weight in backbone.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    for row in (backbone.encoder_eoi_embedding, backbone.decoder_eoi_embedding):
        row.assign(rng.normal(0, 1.0, row.shape))
    return keras_hub.models.T5Gemma2Seq2SeqLM(backbone=backbone)


def both_ways(lm: keras_hub.models.T5Gemma2Seq2SeqLM, answer: list) -> tuple:
    """Logits of the answer in one call, and with an empty cache at index 0."""
    source, ids = np.array([[5, 17, 42]], np.int32), np.array([answer], np.int32)
    ones = np.ones_like
    images, indices = np.zeros((1, 1, IMAGE, IMAGE, 3), np.float32), np.zeros((1, TOKENS), np.int32)
    given = {"encoder_token_ids": source, "encoder_padding_mask": ones(source), "images": images}
    given |= {"decoder_token_ids": ids, "decoder_padding_mask": ones(ids), "vision_indices": indices}
    t = {name: ops.convert_to_tensor(value) for name, value in given.items()}
    whole = lm(t)
    encoded, mask = lm.call_encoder(
        t["encoder_token_ids"], t["encoder_padding_mask"], images=t["images"], vision_indices=t["vision_indices"]
    )
    b = lm.backbone
    cache = ops.zeros((1, b.decoder_num_layers, 2, len(answer), b.decoder_num_key_value_heads, b.decoder_head_dim))
    cached = lm.call_decoder_with_cache(t["decoder_token_ids"], None, (cache, None), 0, encoded, mask)[0]
    return tuple(np.array(ops.convert_to_numpy(ops.stop_gradient(logits))) for logits in (whole, cached))


def main() -> int:
    lm, wrong = model(), False
    print(f"keras_hub {keras_hub.__version__}, keras {keras.__version__} on {keras.backend.backend()}")
    for what, answer in (("without the end-of-image id", [2, 9, 31, 8]), ("with it, second of four", [2, EOI, 31, 8])):
        whole, cached = both_ways(lm, answer)
        off = np.abs(whole - cached).max(axis=-1)[0]
        right = bool(np.all(off < 1e-3))  # rounding is near 1e-6 here, and a NaN is no pass
        wrong |= not right
        print(f"{'right' if right else 'WRONG'}  ids {what}: by position, cached and uncached logits are off by {off}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
