"""T5Gemma 2's encoder by itself in transformers does not read `eoi_token_index`: 256000 is its default.

    pip install torch transformers
    python transformers_t5gemma2_encoder.py

The end-of-image id gets a row of its own, `eoi_embedding`. In the whole model it does. In `T5Gemma2Encoder` of the same
configuration it gets its row of the table, unless the id is 256000, as in the released checkpoints.
"""

# mypy: ignore-errors
import sys

import torch
import transformers
from transformers import T5Gemma2Config
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder, T5Gemma2Model

EOI = 60


def main() -> int:
    stack = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    stack |= {"num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["full_attention"]}
    eyes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes |= {"image_size": 16, "patch_size": 4}
    config = T5Gemma2Config(
        encoder={"text_config": dict(stack), "vision_config": eyes, "mm_tokens_per_image": 4, "eoi_token_index": EOI},
        decoder=dict(stack),
        image_token_index=61,
    )
    torch.manual_seed(0)
    whole = T5Gemma2Model(config)
    alone = T5Gemma2Encoder(config.encoder)
    row = torch.full((24,), 7.0)
    wrong = False
    print(f"transformers {transformers.__version__}")
    for name, encoder in (("the whole model's encoder", whole.encoder), ("T5Gemma2Encoder(config.encoder)", alone)):
        table = encoder.text_model.embed_tokens
        table.eoi_embedding.data.copy_(row)
        right = bool((table(torch.tensor([[EOI]])) == row).all())
        wrong |= not right
        looked = table.eoi_token_index
        print(f"{'right' if right else 'WRONG'}  {name}: id {EOI} gets eoi_embedding; it looks for {looked}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
