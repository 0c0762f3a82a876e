"""T5Gemma 2 in CTranslate2 4.8: properties that any implementation has, checked on random weights.

    pip install ctranslate2 numpy
    python ctranslate2_t5gemma2.py

Nothing else is needed: CTranslate2's own converter is given arrays where it expects torch's tensors. No reference is
compared with: each check asks CTranslate2 twice, and the two answers have to differ, or have to be the same.
"""

# mypy: ignore-errors
import sys
import tempfile
from types import SimpleNamespace as Box

import ctranslate2
import numpy as np
from ctranslate2.converters import transformers as converter

if not hasattr(converter, "transformers"):
    converter.transformers = Box(Conv1D=type("Conv1D", (), {}))

VOCABULARY, WIDTH, FFN, HEADS, SIZE, LAYERS, EOI = 64, 24, 48, 2, 16, 2, 60


class Held(np.ndarray):
    data = property(lambda self: self)

    def float(self):
        return np.asarray(self, np.float32)


def model(window: int, end_of_image: float = 1.0) -> ctranslate2.Translator:
    """Two sliding layers in each stack; the same weights whatever the window and the end-of-image row are."""
    rng = np.random.default_rng(0)

    def linear(*shape: int) -> Box:
        return Box(weight=rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32).view(Held))

    def norm(size: int = WIDTH) -> Box:
        return Box(weight=rng.normal(0, 0.3, size).astype(np.float32).view(Held))

    def layer() -> Box:
        attention = Box(q_proj=linear(HEADS * SIZE, WIDTH), k_proj=linear(SIZE, WIDTH), v_proj=linear(SIZE, WIDTH))
        attention.o_proj, attention.q_norm, attention.k_norm = linear(WIDTH, HEADS * SIZE), norm(SIZE), norm(SIZE)
        mlp = Box(gate_proj=linear(FFN, WIDTH), up_proj=linear(FFN, WIDTH), down_proj=linear(WIDTH, FFN))
        names = ("pre_self_attn", "post_self_attn", "pre_feedforward", "post_feedforward")
        return Box(self_attn=attention, mlp=mlp, **{f"{name}_layernorm": norm() for name in names})

    table = Box(weight=linear(VOCABULARY, WIDTH).weight, embed_scale=WIDTH**0.5)
    table.eoi_embedding = np.full(WIDTH, end_of_image, np.float32).view(Held)
    stacks = [Box(embed_tokens=table, layers=[layer() for _ in range(LAYERS)], norm=norm()) for _ in range(2)]
    rope = {"rope_theta": 10000.0, "rope_type": "default"}
    config = Box(
        num_attention_heads=HEADS, num_key_value_heads=1, head_dim=SIZE, num_hidden_layers=LAYERS,
        hidden_activation="gelu_pytorch_tanh", sliding_window=window, rms_norm_eps=1e-6,
        layer_types=["sliding_attention"] * LAYERS,
        rope_parameters={"sliding_attention": rope, "full_attention": rope},
    )  # fmt: skip
    whole = Box(config=Box(encoder=Box(text_config=config), decoder=config, vocab_size=VOCABULARY), lm_head=Box())
    whole.config.eoi_token_index = whole.config.encoder.eoi_token_index = EOI
    whole.model = Box(encoder=Box(text_model=stacks[0]), decoder=stacks[1])
    tokens = Box(get_vocab=lambda: {str(i): i for i in range(VOCABULARY)}, bos_token="2", eos_token="1", unk_token="3")
    spec = converter.T5Gemma2Loader()(whole, tokens)
    spec.config.decoder_start_token = None  # the first id of a prefix starts the decoder
    spec.validate()
    spec.optimize()
    folder = tempfile.mkdtemp()
    spec.save(folder)
    return ctranslate2.Translator(folder, device="cpu", compute_type="float32", intra_threads=1)


def logits(translator: ctranslate2.Translator, sources: list, prefix: list) -> list:
    """The logits after each id of the prefix, for each source."""
    given = {"beam_size": 1, "max_decoding_length": len(prefix), "min_decoding_length": 0, "return_logits_vocab": True}
    results = translator.translate_batch(sources, target_prefix=[prefix] * len(sources), **given)
    return [np.concatenate([np.asarray(part) for part in result.logits]) for result in results]


def ids(count: int, seed: int) -> list:
    return [str(i) for i in np.random.default_rng(seed).integers(4, VOCABULARY, count)]


def far(one: np.ndarray, other: np.ndarray) -> str:
    return f"largest difference {np.abs(one - other).max():.2g}, of logits up to {np.abs(other).max():.2g}"


def windows(narrow: ctranslate2.Translator, wide: ctranslate2.Translator) -> list:
    """What a window of 4 changes, in a source of 20 and in an answer of 20."""
    found = []
    for stack, source, answer in (("encoder", 20, 3), ("decoder", 2, 20)):
        one, other = (logits(model, [ids(source, 1)], ids(answer, 2))[0] for model in (narrow, wide))
        what = f"a window of 4 in the {stack} changes what 20 ids there give"
        found.append((what, not np.array_equal(one, other), far(one, other)))
    return found


def batches(model: ctranslate2.Translator) -> list:
    """A short source alone, beside a longer one, and beside one of its own length."""
    alone = logits(model, [ids(3, 4)], ids(3, 2))[0]
    found = []
    for length, said in ((3, "a row of its length"), (6, "a longer one")):
        beside = logits(model, [ids(length, 3), ids(3, 4)], ids(3, 2))[1]
        what = f"a source gives the same beside {said} as alone"
        found.append((what, np.allclose(alone, beside, atol=1e-4), far(beside, alone)))
    return found


def scores(narrow: ctranslate2.Translator, wide: ctranslate2.Translator) -> list:
    """Whether what follows an id moves what was said of it, and whether a long answer is scored."""
    source, begin = ids(3, 5), ids(2, 6)
    ends = [begin + ids(1, seed) for seed in (7, 8)]
    one, other = (logits(wide, [source], end)[0][0] for end in ends)
    found = [
        ("logits do not depend on later ids (translate_batch)", np.allclose(one, other, atol=1e-4), far(one, other))
    ]
    first, second = (wide.score_batch([source], [end])[0].log_probs[0] for end in ends)
    what = "log p of an id does not depend on later ids (score_batch)"
    found.append((what, abs(first - second) < 1e-4, f"{first:.4f} and {second:.4f}"))
    try:
        narrow.score_batch([source], [ids(6, 9)])
        said, right = "it answers", True
    except ValueError as error:
        said, right = f"ValueError: {error}", False
    return [*found, ("an answer longer than the window is scored (score_batch)", right, said)]


def end_of_image() -> list:
    """Whether the row that the end-of-image id has of its own is used."""
    one, other = (logits(model(4096, row), [["5", str(EOI)]], ["2", str(EOI)])[0] for row in (1.0, -1.0))
    what = "another eoi_embedding changes what the end-of-image id gives"
    return [(what, not np.array_equal(one, other), far(one, other))]


def main() -> int:
    narrow, wide = model(4), model(4096)
    found = windows(narrow, wide) + batches(wide) + scores(narrow, wide) + end_of_image()
    print(f"ctranslate2 {ctranslate2.__version__}, numpy {np.__version__}")
    for what, right, said in found:
        print(f"{'right' if right else 'WRONG'}  {what}: {said}")
    return 1 if any(not right for _, right, _ in found) else 0


if __name__ == "__main__":
    sys.exit(main())
