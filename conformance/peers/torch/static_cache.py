"""transformers' preallocated cache, as its `generate` makes it for `cache_implementation="static"`.

What lies in its slots has another shape than what was fed: keys, values and masks of the decoder's cached calls are not
shown. A slot that is wrongly read shows in what attention gives.
"""

from __future__ import annotations

import copy
from typing import Any

from t5g2ref import taps
from t5g2ref.config import Config

SPARE = 3  # slots that stay empty: who reads one deviates
HIDDEN = (".mask", ".keys", ".values", ".cross_keys", ".cross_values")


def shown(config: Config) -> tuple[str, ...]:
    """The taps that such a peer shows: all but what the cache holds, and masks over its slots."""
    tables = [
        taps.table(config, images=images, task=task, loss=True)
        for images in (False, True)
        for task in ("lm", "encoder", "sequence", "token")
    ]
    names = dict.fromkeys(tap.name for table in tables for tap in table)
    return tuple(name for name in names if not (name.startswith("decoder.") and name.endswith(HIDDEN)))


def made(config: Any, length: int, source: int) -> Any:
    """A cache for so many decoder positions over a source of so many tokens. Cross keys lie under no window."""
    from transformers import EncoderDecoderCache, StaticCache

    own = config.get_text_config(decoder=True)
    cross = copy.deepcopy(own)
    cross.sliding_window = None
    cross.layer_types = ["full_attention"] * cross.num_hidden_layers
    return EncoderDecoderCache(
        StaticCache(config=own, max_cache_len=length + SPARE), StaticCache(config=cross, max_cache_len=source)
    )
