"""T5Gemma 2's `generate` in transformers raises where a static cache meets an answer that begins with several ids.

    pip install torch transformers
    python transformers_t5gemma2_generate.py

With sdpa attention the prepared causal mask of such a first call is None, since a plain causal mask may be left out.
The decoder joins it with the cross mask, and `torch.cat` raises TypeError.
"""

# mypy: ignore-errors
import sys

import torch
import transformers
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration


def model():
    stack = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    stack |= {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    stack |= {"layer_types": ["sliding_attention", "full_attention"], "bos_token_id": 2, "eos_token_id": 1}
    eyes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    eyes |= {"image_size": 16, "patch_size": 8}
    config = T5Gemma2Config(
        encoder={"text_config": dict(stack), "vision_config": eyes, "mm_tokens_per_image": 4, "eoi_token_index": 60},
        decoder=dict(stack),
        image_token_index=61,
    )
    torch.manual_seed(0)
    return T5Gemma2ForConditionalGeneration(config).eval()


def main() -> int:
    wrong = False
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for attention in ("eager", "sdpa"):
        for cache in ("dynamic", "static"):
            for start in ([2], [2, 9, 10]):
                made = model()  # anew: what an earlier call left behind is another matter
                made.set_attn_implementation(attention)
                kept = {} if cache == "dynamic" else {"cache_implementation": "static", "disable_compile": True}
                try:
                    made.generate(
                        torch.tensor([[2, 11, 12]]),
                        decoder_input_ids=torch.tensor([start]),
                        max_new_tokens=3,
                        do_sample=False,
                        **kept,
                    )
                    said = "right"
                except Exception as error:
                    wrong, said = True, f"WRONG {type(error).__name__}: {error}"
                print(f"{attention}, {cache} cache, an answer that begins with {len(start)}: {said}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
