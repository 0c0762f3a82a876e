"""Turns what was gathered into what the template shows: words, numbers and drawings, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from t5g2ref import decoder, embedding, encoder, masks, mlp, ops, outputs, rope, vision
from t5g2ref.atlas import attending, grids, pictures, plots
from t5g2ref.atlas.gather import MOST_LAYERS, Gathered, shown
from t5g2ref.atlas.places import Place, summary
from t5g2ref.atlas.seen import shrunk
from t5g2ref.atlas.tokens import named
from t5g2ref.attention import attend, attention_weights, dense_mask, merged_attention, self_attention
from t5g2ref.config import TextConfig
from t5g2ref.generate.processors import log_softmax
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array

HEADS = 8  # drawn of a layer, beside their mean
CHOICES = 5
CODE: dict[str, tuple[Callable[..., Any], ...]] = {
    "way": (T5Gemma2.__call__, T5Gemma2.encode, encoder.encode, decoder.decode),
    "input": (embedding.embed, embedding.place_images, vision.patches, vision.average),
    "choices": (outputs.lm_logits, T5Gemma2.decode),
    "merged": (merged_attention, attend, attention_weights),
    "self": (self_attention, attend, attention_weights),
    "masks": (masks.encoder_band, masks.decoder_band, dense_mask),
    "rope": (rope.inverse_frequencies, rope.tables, rope.rotate),
    "depth": (ops.add_norm, mlp.feed_forward, vision.block),
}
"""The code of each section."""
PICTURES = (embedding.place_images, vision.patches, vision.average, vision.block)
ANSWERS = (decoder.decode, masks.decoder_band, T5Gemma2.__call__)
"""What does not run without pictures, and without a decoder."""


class View:
    """Everything that the page shows of one call."""

    def __init__(self, found: Gathered, tokenizer: Any) -> None:
        self.found, self.model, self.config = found, found.model, found.model.config
        image = -1 if found.pixels is None else self.config.image_token_index
        self.source = named(map(int, found.ids), tokenizer, image, self.config.mm_tokens_per_image)
        self.start = [] if found.start is None else named(map(int, found.start), tokenizer)
        self.chosen = [] if found.chosen is None else named(map(int, found.chosen), tokenizer)
        self._tokenizer = tokenizer

    def code(self) -> dict[str, list[tuple[Place, str]]]:
        """The functions that each section is computed by, and the first sentences of their documentation."""
        places = self.found.places
        unused: tuple[Any, ...] = () if self.found.pixels is not None else PICTURES
        unused += () if self.config.has_decoder else ANSWERS
        return {name: [(places.of(f), summary(f)) for f in code if f not in unused] for name, code in CODE.items()}

    def choices(self) -> list[dict[str, Any]]:
        """The likeliest next tokens at each position."""
        if self.found.logits is None or self.found.chosen is None:
            return []
        shares = np.exp(log_softmax(self.model.nx.xp, self.model.nx.wide(self.found.logits)))
        rows = []
        for i, row in enumerate(shares):
            order = np.argsort(-row, kind="stable")[:CHOICES]
            texts = named(map(int, order), self._tokenizer)
            found = [(text, int(token), float(row[token])) for text, token in zip(texts, order, strict=True)]
            rows.append({"after": self.start[i], "chosen": int(self.found.chosen[i]), "found": found})
        return rows

    def seen_pictures(self) -> list[dict[str, Any]]:
        """Each picture as the tower sees it, and the squares of patches that become its tokens."""
        if self.found.pixels is None:
            return []
        side, grid = self.config.tokens_per_side, self.config.vision.patches_per_side
        places = np.flatnonzero(self.found.ids == self.config.image_token_index).reshape(-1, side * side)
        return [
            {"address": pictures.photo(picture), "positions": [int(p) for p in row], "side": side, "grid": grid}
            for picture, row in zip(self.found.pixels, places, strict=True)
        ]

    def self_attention(self) -> list[dict[str, Any]]:
        """The encoder's weights in each layer: the mean of the heads, then each head."""
        layers = []
        for layer in self.found.layers("encoder"):
            weights = attending.encoder_weights(self.model, self.found.kept, layer)[0]
            mean = grids.weighed("mean of the heads", weights.mean(axis=0), self.source, self.source)
            layers.append(self._layer(layer, self.config.encoder, mean, weights))
        return layers

    def merged_attention(self) -> list[dict[str, Any]]:
        """The decoder's weights in each layer, in two halves."""
        layers, own = [], len(self.start)
        for layer in self._decoder_layers():
            weights = self._merged(layer)
            mean = grids.weighed("mean of the heads", weights.mean(axis=0), self.start, self._keys(), own)
            parted = np.insert(weights, [own, own], 0.0, axis=-1)  # a gap between the halves
            layers.append(self._layer(layer, self.config.decoder, mean, parted))
        return layers

    def steps(self) -> list[dict[str, Any]]:
        """One merged row a step: the layers down, own past and encoder across."""
        layers, own = self._decoder_layers(), len(self.start)
        means = {layer: self._merged(layer).mean(axis=0) for layer in layers}
        steps = []
        for i, token in enumerate(self.start):
            rows = np.stack([means[layer][i] for layer in layers])
            names = [f"layer {layer} {self._kind(self.config.decoder, layer)}" for layer in layers]
            kept = np.concatenate([rows[:, : i + 1], rows[:, own:]], axis=1)
            keys = [*self.start[: i + 1], *self._keys()[own:]]
            grid = grids.weighed(f"step {i}", kept, names, keys, i + 1, cell=min(20.0, max(3.0, 640 / len(keys))))
            told = [f"own {k} {t}" for k, t in enumerate(self.start[: i + 1])]
            told += [f"{k} {t}" for k, t in enumerate(self.source)]
            top = [
                (name, float(row[i + 1 :].sum()), grids.strongest(row, told))
                for name, row in zip(names, kept, strict=True)
            ]
            steps.append({"token": token, "next": self.chosen[i], "grid": grid, "top": top})
        return steps

    def masks(self) -> list[dict[str, Any]]:
        """The mask of the first layer of each kind, in each stack."""
        drawn = []
        for stack, text, module in self._stacks():
            for kind in dict.fromkeys(text.layer_types):
                layer = next(i for i in self.found.layers(stack) if text.layer_types[i] == kind)
                mask = self.found.kept[f"{module}.layers.{layer}.self_attn.mask"][0]
                name = f"{stack}, {kind.removesuffix('_attention')}"
                sides = (self.source, self.source) if stack == "encoder" else (self.start, self._keys())
                own = None if stack == "encoder" else len(self.start)
                drawn.append({"grid": grids.masked(name, mask, *sides, own), "window": text.window(kind)})
        return drawn

    def waves(self) -> plots.Waves:
        """RoPE's wavelengths by stack and layer type; of the encoder's alone where the decoder's are the same."""
        found: dict[str, Array] = {}
        same = self.config.has_decoder and dict(self._turns(self.config.encoder)) == dict(
            self._turns(self.config.decoder)
        )
        for stack, text, _ in self._stacks():
            if stack == "decoder" and same:
                continue
            for kind, (theta, factor, width) in self._turns(text):
                said = f"{'both stacks' if same else stack}, {kind}: theta {theta:g}, factor {factor:g}"
                inverse = rope.inverse_frequencies(self.model.nx, text.rope_parameters[f"{kind}_attention"], width)
                found[said] = 2 * np.pi / np.asarray(inverse, dtype=np.float64)
        marks = {f"{stack}'s window": text.sliding_window for stack, text, _ in self._stacks()}
        marks = {"window": self.config.encoder.sliding_window} if len(set(marks.values())) == 1 else marks
        most = max(text.max_position_embeddings for _, text, _ in self._stacks())
        marks |= {"this source": len(self.source), "most positions": most}
        return plots.waves(found, marks)

    def depths(self) -> list[tuple[str, plots.Depth]]:
        """The residual's size along each stack."""
        parts = {"picture tower": "encoder.vision_tower", "encoder": "encoder.text_model", "decoder": "decoder"}
        drawn = []
        for said, module in parts.items():
            mine = {name: size for name, size in self.found.sizes.items() if name.startswith(f"{module}.")}
            if mine:
                names = [name.removeprefix(f"{module}.").removeprefix("encoder.") for name in mine]
                short = [name.replace("layers.", "layer ").replace("post_layernorm", "norm") for name in names]
                drawn.append((said, plots.depth(short, list(mine.values()))))
        return drawn

    def omissions(self) -> list[str]:
        """What the page leaves out of this call."""
        stacks = [(stack, text, self.found.layers(stack)) for stack, text, _ in self._stacks()]
        said = [
            f"Of the {stack}'s {text.num_hidden_layers} layers {len(layers)} are shown."
            for stack, text, layers in stacks
            if len(layers) < text.num_hidden_layers
        ]
        if len(shown(self.config.vision)) < self.config.vision.num_hidden_layers and self.found.pixels is not None:
            said.append(f"Of the tower's {self.config.vision.num_hidden_layers} layers {MOST_LAYERS} are shown.")
        if max(t.num_attention_heads for _, t, _ in self._stacks()) > HEADS:
            said.append(f"Of the heads the first {HEADS} are drawn; means are of all.")
        if len(self.source) > grids.SIDE:
            said.append(f"Drawings of more than {grids.SIDE} keys show the largest weight of each block of keys.")
        return said

    def _layer(self, layer: int, text: TextConfig, mean: grids.Grid, weights: Array) -> dict[str, Any]:
        heads = [pictures.strength(shrunk(head, 64, 64)) for head in weights[:HEADS]]
        return {"layer": layer, "kind": self._kind(text, layer), "mean": mean, "heads": heads}

    def _merged(self, layer: int) -> Array:
        return attending.decoder_weights(self.model, self.found.kept, layer)[0]

    def _decoder_layers(self) -> list[int]:
        return self.found.layers("decoder") if self.config.has_decoder else []

    def _keys(self) -> list[str]:
        return [*self.start, *self.source]

    def _stacks(self) -> list[tuple[str, TextConfig, str]]:
        found = [("encoder", self.config.encoder, "encoder.text_model")]
        return [*found, ("decoder", self.config.decoder, "decoder")] if self.config.has_decoder else found

    @staticmethod
    def _kind(text: TextConfig, layer: int) -> str:
        return text.layer_types[layer].removesuffix("_attention")

    @staticmethod
    def _turns(text: TextConfig) -> list[tuple[str, tuple[float, float, int]]]:
        """(layer type, what its angles are made of) of each type that the stack has."""
        kinds = sorted(set(text.layer_types))
        ropes = [(kind, text.rope_parameters[kind]) for kind in kinds]
        return [(kind.removesuffix("_attention"), (r.theta, r.factor, text.head_dim)) for kind, r in ropes]
