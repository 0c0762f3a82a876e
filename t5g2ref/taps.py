"""The one table of taps: every named value of the model, its shape in letters, which tokens are its rows, and where
transformers shows it. It is the shape documentation, the name map and the comparison plan at once.

Letters: see the package's legend. `rows` names the padding mask that says which rows mean something:
encoder (B, S_enc), decoder (B, T), own (all decoder positions still held), logits (the decoder positions whose logits
were asked for), or all.

`peer` says where to look in transformers, relative to the stack's module: `PATH:out`, `PATH:in`, `PATH:out:1` (the
second call of that module in one forward: the cross keys go through the same k_proj), `PATH:query|own_keys|mask|…`
(what reaches the attention function), `PATH:rope_keys` (what RoPE returns, before the cache) and `PATH:cos:KIND`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from t5g2ref.config import Config, TextConfig


@dataclass(frozen=True)
class Tap:
    """One row of the table.

    Args:
        name: full dotted name (in the templates: relative to its stack).
        shape: one letter an axis, separated by spaces.
        rows: whose padding applies: "encoder", "decoder", "own", "logits" or "all".
        peer: where transformers shows it, relative to `module`.
        spine: on the residual stream: judged from the ids as well, so that error can be followed along depth.
        first_call: made only when a new source is encoded.
        module: path of the peer's stack that `peer` starts from.
    """

    name: str
    shape: str
    rows: str
    peer: str
    spine: bool = False
    first_call: bool = False
    module: str = ""

    @property
    def exact(self) -> bool:
        """Compared bit for bit: a mask has no rounding error."""
        return self.name.endswith(".mask")

    @property
    def token_axes(self) -> tuple[int, ...]:
        """The axes that count tokens (or patches, or classes of one row); errors are judged per token."""
        letters = self.shape.split()
        counted = ("B", "T", "I", "P", "M") if self.exact else ("B", "T", "S", "I", "P", "M")  # a mask's S are keys
        return tuple(i for i, letter in enumerate(letters) if letter in counted)


_LAYER_HEAD = [
    Tap("pre_self_attn_layernorm", "B T D", "", "pre_self_attn_layernorm:out"),
    Tap("self_attn.q_proj", "B T N*H", "", "self_attn.q_proj:out"),
    Tap("self_attn.k_proj", "B T K*H", "", "self_attn.k_proj:out"),
    Tap("self_attn.v_proj", "B T K*H", "", "self_attn.v_proj:out"),
    Tap("self_attn.q_norm", "B N T H", "", "self_attn.q_norm:out"),
    Tap("self_attn.q_rope", "B N T H", "", "self_attn:query"),
    Tap("self_attn.k_norm", "B K T H", "", "self_attn.k_norm:out"),
    Tap("self_attn.k_rope", "B K T H", "", "self_attn:rope_keys"),
]
_CROSS = [
    Tap("self_attn.cross_k_proj", "B S K*H", "encoder", "self_attn.k_proj:out:1", first_call=True),
    Tap("self_attn.cross_v_proj", "B S K*H", "encoder", "self_attn.v_proj:out:1", first_call=True),
    Tap("self_attn.cross_k_norm", "B K S H", "encoder", "self_attn.k_norm:out:1", first_call=True),
    Tap("self_attn.keys", "B K S H", "own", "self_attn:own_keys"),
    Tap("self_attn.values", "B K S H", "own", "self_attn:own_values"),
    Tap("self_attn.cross_keys", "B K S H", "encoder", "self_attn:cross_keys"),
    Tap("self_attn.cross_values", "B K S H", "encoder", "self_attn:cross_values"),
]
_LAYER_TAIL = [
    Tap("self_attn.mask", "B T S", "", "self_attn:mask"),
    Tap("self_attn.attention", "B T N*H", "", "self_attn.o_proj:in"),
    Tap("self_attn.o_proj", "B T D", "", "self_attn.o_proj:out"),
    Tap("post_self_attn_layernorm", "B T D", "", "post_self_attn_layernorm:out"),
    Tap("attn_residual", "B T D", "", "pre_feedforward_layernorm:in"),
    Tap("pre_feedforward_layernorm", "B T D", "", "pre_feedforward_layernorm:out"),
    Tap("mlp.gate_proj", "B T F", "", "mlp.gate_proj:out"),
    Tap("mlp.up_proj", "B T F", "", "mlp.up_proj:out"),
    Tap("mlp.act_fn", "B T F", "", "mlp.act_fn:out"),
    Tap("mlp.product", "B T F", "", "mlp.down_proj:in"),
    Tap("mlp.down_proj", "B T D", "", "mlp.down_proj:out"),
    Tap("post_feedforward_layernorm", "B T D", "", "post_feedforward_layernorm:out"),
]
_VISION_LAYER = [
    Tap("layer_norm1", "I P D", "all", "layer_norm1:out"),
    Tap("self_attn.q_proj", "I P D", "all", "self_attn.q_proj:out"),
    Tap("self_attn.k_proj", "I P D", "all", "self_attn.k_proj:out"),
    Tap("self_attn.v_proj", "I P D", "all", "self_attn.v_proj:out"),
    Tap("self_attn.attention", "I P D", "all", "self_attn.out_proj:in"),
    Tap("self_attn.out_proj", "I P D", "all", "self_attn.out_proj:out"),
    Tap("attn_residual", "I P D", "all", "layer_norm2:in"),
    Tap("layer_norm2", "I P D", "all", "layer_norm2:out"),
    Tap("mlp.fc1", "I P F", "all", "mlp.fc1:out"),
    Tap("mlp.activation_fn", "I P F", "all", "mlp.activation_fn:out"),
    Tap("mlp.fc2", "I P D", "all", "mlp.fc2:out"),
]


def table(config: Config, *, images: bool = True, task: str = "lm", loss: bool = False) -> list[Tap]:
    """Every tap of a call, in the order in which the values come to be: the first bad one is the culprit.

    Args:
        images: the call has pixel_values.
        task: "lm", "sequence" or "token".
        loss: the call has labels.
    """
    return list(_table(config, images, task, loss))


@lru_cache(maxsize=32)
def _table(config: Config, images: bool, task: str, loss: bool) -> tuple[Tap, ...]:
    taps = [Tap("encoder.text_model.embed_tokens", "B T D", "encoder", "embed_tokens:out", spine=True)]
    taps = [replace(taps[0], module="encoder.text_model")]
    if images:
        taps += _vision(config)
    taps += _stack("encoder.text_model", config.encoder, "encoder", decoder=False)
    taps = [replace(tap, first_call=True) for tap in taps]
    if not config.has_decoder:
        return tuple(taps)
    taps.append(Tap("decoder.embed_tokens", "B T D", "decoder", "embed_tokens:out", spine=True, module="decoder"))
    taps += _stack("decoder", config.decoder, "decoder", decoder=True)
    return (*taps, *_heads(task, loss))


def _stack(module: str, config: TextConfig, rows: str, *, decoder: bool) -> Iterator[Tap]:
    yield Tap(f"{module}.inputs_embeds", "B T D", rows, "layers.0:in", True, module=module)
    for kind in sorted(set(config.layer_types)):
        for part in ("cos", "sin"):
            name = f"{module}.rotary_emb.{kind}.{part}"
            yield Tap(name, "B T H", rows, f"rotary_emb:{part}:{kind}", module=module)
    parts = [*_LAYER_HEAD, *(_CROSS if decoder else []), *_LAYER_TAIL]
    for i in range(config.num_hidden_layers):
        for tap in parts:
            name, peer = f"{module}.layers.{i}.{tap.name}", f"layers.{i}.{tap.peer}"
            yield replace(tap, name=name, peer=peer, rows=tap.rows or rows, module=module)
        yield Tap(f"{module}.layers.{i}", "B T D", rows, f"layers.{i}:out", spine=True, module=module)
    yield Tap(f"{module}.norm", "B T D", rows, "norm:out", spine=True, module=module)


def _vision(config: Config) -> Iterator[Tap]:
    tower, projector = "encoder.vision_tower", "encoder.multi_modal_projector"
    yield Tap(f"{tower}.embeddings.patch_embedding", "I P D", "all", "embeddings.patch_embedding:out", module=tower)
    yield Tap(f"{tower}.embeddings", "I P D", "all", "embeddings:out", spine=True, module=tower)
    for i in range(config.vision.num_hidden_layers):
        at = f"encoder.layers.{i}"
        for tap in _VISION_LAYER:
            yield replace(tap, name=f"{tower}.{at}.{tap.name}", peer=f"{at}.{tap.peer}", module=tower)
        yield Tap(f"{tower}.{at}", "I P D", "all", f"{at}:out", spine=True, module=tower)
    yield Tap(f"{tower}.post_layernorm", "I P D", "all", "post_layernorm:out", spine=True, module=tower)
    for name, shape, peer in (
        ("avg_pool", "I M D", "mm_soft_emb_norm:in"),
        ("mm_soft_emb_norm", "I M D", "mm_soft_emb_norm:out"),
        ("projected", "I M D", ":out"),
    ):
        yield Tap(f"{projector}.{name}", shape, "all", peer, spine=name == "projected", module=projector)


def _heads(task: str, loss: bool) -> list[Tap]:
    if task == "lm":
        taps = [
            Tap("lm_head", "B T V", "logits", "lm_head.out_proj:out"),
            Tap("logits", "B T V", "logits", "logits"),
        ]
    elif task == "token":
        taps = [
            Tap("score", "B T C", "decoder", "score.out_proj:out"),
            Tap("logits", "B T C", "decoder", "logits"),
        ]
    else:
        taps = [Tap("score", "B T C", "decoder", "score.out_proj:out"), Tap("logits", "B C", "all", "logits")]
    # one number a row is no spine: whether its error is large or small by luck, nothing averages it out
    taps[-1] = replace(taps[-1], spine=task != "sequence")
    return [*taps, Tap("loss", "", "all", "loss")] if loss else taps
