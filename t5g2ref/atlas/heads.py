"""Attention as drawings: of the encoder, and of the decoder's merged row, by layer and by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from t5g2ref.atlas import attending, grids, pictures
from t5g2ref.atlas.gather import Gathered
from t5g2ref.atlas.looking import HEADS, patch_names
from t5g2ref.atlas.seen import shrunk
from t5g2ref.config import TextConfig
from t5g2ref.numerics import Array


@dataclass(frozen=True)
class Heads:
    """The weights of one call.

    Args:
        found: the call.
        source, start, chosen: names of its tokens.
    """

    found: Gathered
    source: list[str]
    start: list[str]
    chosen: list[str]

    def self_attention(self) -> list[dict[str, Any]]:
        """The encoder's weights in each layer: the mean of the heads, then each head."""
        layers = []
        for layer in self.found.layers("encoder"):
            weights = attending.encoder_weights(self.found.model, self.found.kept, layer)[0]
            mean = grids.weighed("mean of the heads", weights.mean(axis=0), self.source, self.source)
            layers.append(self._layer(layer, self.found.model.config.encoder, mean, weights))
        return layers

    def tower_attention(self) -> list[dict[str, Any]]:
        """The tower's weights in each layer: of the first picture's patches; and what each patch gets, by picture."""
        names, layers = patch_names(self.found.model.config.vision.patches_per_side), []
        for layer, seen in self.found.looked.items():
            mean = grids.weighed("mean of the heads", seen.mean, names, names)
            heads = [pictures.strength(head) for head in seen.heads]
            layers.append({"layer": layer, "kind": "", "mean": mean, "heads": heads, "looks": self._given(seen.given)})
        return layers

    def _given(self, given: Array) -> list[tuple[str, float]]:
        """Of each picture what its patches get, as a square, and how many times an even share the largest is."""
        side = self.found.model.config.vision.patches_per_side
        squares = [one.reshape(side, side) for one in given]
        return [(pictures.strength(one, 0.0, pictures.ORANGE), float(one.max() * one.size)) for one in squares]

    def merged_attention(self) -> list[dict[str, Any]]:
        """The decoder's weights in each layer, in two halves."""
        layers, own = [], len(self.start)
        for layer in self._decoder_layers():
            weights = self._merged(layer)
            mean = grids.weighed(
                "mean of the heads", weights.mean(axis=0), self.start, [*self.start, *self.source], own
            )
            parted = np.insert(weights, [own, own], 0.0, axis=-1)  # a gap between the halves
            layers.append(self._layer(layer, self.found.model.config.decoder, mean, parted))
        return layers

    def steps(self) -> list[dict[str, Any]]:
        """One merged row a step: the layers down, own past and encoder across; and where it looks in the pictures."""
        text, own = self.found.model.config.decoder, len(self.start)
        means = {layer: self._merged(layer).mean(axis=0) for layer in self._decoder_layers()}
        names = [f"layer {layer} {self._kind(text, layer)}" for layer in means]
        steps = []
        for i, token in enumerate(self.start):
            rows = np.stack([mean[i] for mean in means.values()])
            kept = np.concatenate([rows[:, : i + 1], rows[:, own:]], axis=1)
            keys = [*self.start[: i + 1], *self.source]
            grid = grids.weighed(f"step {i}", kept, names, keys, i + 1, cell=min(20.0, max(3.0, 640 / len(keys))))
            step = {"token": token, "next": self.chosen[i], "grid": grid, "top": self._top(names, kept, i)}
            steps.append(step | {"looks": self._looks(rows[:, own:].mean(axis=0))})
        return steps

    def _top(self, names: list[str], rows: Array, step: int) -> list[tuple[str, float, list[tuple[str, float]]]]:
        """Of each layer the share that lies on the encoder, and the strongest keys with their places."""
        told = [f"own {k} {token}" for k, token in enumerate(self.start[: step + 1])]
        told += [f"{k} {token}" for k, token in enumerate(self.source)]
        shares = [float(row[step + 1 :].sum()) for row in rows]
        return [(name, share, grids.strongest(row, told)) for name, share, row in zip(names, shares, rows, strict=True)]

    def _looks(self, weights: Array) -> list[tuple[str, float]]:
        """Of each picture its tokens' weights as a square, and their sum; weights (S_enc,) are a mean of layers."""
        config = self.found.model.config
        if self.found.pixels is None:
            return []
        squares = weights[self.found.ids == config.image_token_index].reshape(
            -1, config.tokens_per_side, config.tokens_per_side
        )
        top = float(squares.max())
        return [(pictures.strength(one, top, pictures.ORANGE), float(one.sum())) for one in squares]

    def _layer(self, layer: int, text: TextConfig, mean: grids.Grid, weights: Array) -> dict[str, Any]:
        heads = [pictures.strength(shrunk(head, 64, 64)) for head in weights[:HEADS]]
        return {"layer": layer, "kind": self._kind(text, layer), "mean": mean, "heads": heads, "looks": []}

    def _merged(self, layer: int) -> Array:
        return attending.decoder_weights(self.found.model, self.found.kept, layer)[0]

    def _decoder_layers(self) -> list[int]:
        return self.found.layers("decoder") if self.found.model.config.has_decoder else []

    @staticmethod
    def _kind(text: TextConfig, layer: int) -> str:
        return text.layer_types[layer].removesuffix("_attention")
