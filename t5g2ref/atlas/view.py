"""Turns what was gathered into what the template shows: words, numbers and drawings, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from t5g2ref import decoder, embedding, encoder, masks, mlp, ops, outputs, rope, vision
from t5g2ref.atlas import grids, pictures, plots
from t5g2ref.atlas.gather import PHOTOS, Gathered, shown
from t5g2ref.atlas.heads import Heads
from t5g2ref.atlas.looking import HEADS
from t5g2ref.atlas.places import Place, summary
from t5g2ref.atlas.tokens import named
from t5g2ref.attention import attend, attention_weights, dense_mask, merged_attention, self_attention
from t5g2ref.config import TextConfig
from t5g2ref.generate.processors import log_softmax
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array

CHIPS = 16  # tokens of a picture that are listed one by one
CHOICES = 5
CODE: dict[str, tuple[Callable[..., Any], ...]] = {
    "way": (T5Gemma2.encode, encoder.encode, T5Gemma2.start, decoder.decode),
    "input": (embedding.embed, embedding.place_images, vision.patches, vision.average),
    "choices": (outputs.lm_logits, T5Gemma2.decode),
    "merged": (merged_attention, attend, attention_weights),
    "tower": (vision.tower, vision.attention, vision.heads, attend),
    "self": (self_attention, attend, attention_weights),
    "masks": (masks.encoder_band, masks.decoder_band, dense_mask),
    "rope": (rope.inverse_frequencies, rope.tables, rope.rotate),
    "depth": (ops.add_norm, mlp.feed_forward, vision.block),
}
"""The code of each section."""
PICTURES = (
    *(vision.tower, vision.patches, vision.block, vision.attention, vision.heads, vision.average),
    embedding.place_images,
)
ANSWERS = (decoder.decode, masks.decoder_band, T5Gemma2.start)
"""What does not run without pictures, and without a decoder."""


class View:
    """Everything that the page shows of one call."""

    photos = PHOTOS

    def __init__(self, found: Gathered, tokenizer: Any) -> None:
        self.found, self.model, self.config = found, found.model, found.model.config
        image = -1 if found.pixels is None else self.config.image_token_index
        self.source = named(map(int, found.ids), tokenizer, image, self.config.mm_tokens_per_image)
        self.start = [] if found.start is None else named(map(int, found.start), tokenizer)
        self.chosen = [] if found.chosen is None else named(map(int, found.chosen), tokenizer)
        self._tokenizer = tokenizer
        self.heads = Heads(found, self.source, self.start, self.chosen)

    def code(self) -> dict[str, list[tuple[Place, str]]]:
        """The functions that each section is computed by, and the first sentences of their documentation."""
        places = self.found.places
        unused: tuple[Any, ...] = () if self.found.pixels is not None else PICTURES
        unused += () if self.config.has_decoder else ANSWERS
        return {name: [(places.of(f), summary(f)) for f in code if f not in unused] for name, code in CODE.items()}

    def chips(self) -> list[tuple[str, str]]:
        """(place, name) of the source's tokens; a picture of many tokens is one."""
        many = self.config.mm_tokens_per_image
        inside = np.flatnonzero(self.found.ids == self.config.image_token_index).tolist() if many > CHIPS else []
        found = [(str(i), name) for i, name in enumerate(self.source) if i not in set(inside)]
        starts = inside[::many]
        found += [(f"{i} to {i + many - 1}", f"{self.source[i]} to {self.source[i + many - 1]}") for i in starts]
        return sorted(found, key=lambda chip: int(chip[0].split()[0]))

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
                last = np.asarray([len(self.source if stack == "encoder" else self.start) - 1])
                given = text.rope_parameters[f"{kind}_attention"]
                inverse = np.asarray(rope.inverse_frequencies(self.model.nx, given, width, last), dtype=np.float64)
                found[said] = 2 * np.pi / inverse[inverse > 0]  # of some types a plane may stand still
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
        tower, looked = self.config.vision, len(self.found.looked)
        if self.found.pixels is not None and looked < tower.num_hidden_layers:
            layers = f"{len(shown(tower))} are shown, and the attention of {looked}"
            said.append(f"Of the tower's {tower.num_hidden_layers} layers {layers}.")
        heads = [text.num_attention_heads for _, text, _ in self._stacks()]
        heads += [tower.num_attention_heads] if looked else []
        if max(heads) > HEADS:
            said.append(f"Of the heads the first {HEADS} are drawn; means are of all.")
        if self.found.pixels is not None and len(self.found.pixels) > PHOTOS:
            said.append(f"Of {len(self.found.pixels)} pictures the first {PHOTOS} are drawn.")
        patches = tower.patches_per_side**2 if looked else 0
        if max(len(self.source), patches) > grids.SIDE:
            said.append(f"Drawings of more than {grids.SIDE} keys show the largest weight of each block of keys.")
        return said

    def _keys(self) -> list[str]:
        return [*self.start, *self.source]

    def _stacks(self) -> list[tuple[str, TextConfig, str]]:
        found = [("encoder", self.config.encoder, "encoder.text_model")]
        return [*found, ("decoder", self.config.decoder, "decoder")] if self.config.has_decoder else found

    @staticmethod
    def _turns(text: TextConfig) -> list[tuple[str, tuple[float, float, int]]]:
        """(layer type, what its angles are made of) of each type that the stack has."""
        kinds = sorted(set(text.layer_types))
        ropes = [(kind, text.rope_parameters[kind]) for kind in kinds]
        return [(kind.removesuffix("_attention"), (r.theta, r.factor, text.head_dim)) for kind, r in ropes]
