"""What every way to generate takes by keyword, and how each begins: source encoded, start checked, ends known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from t5g2ref import inputs
from t5g2ref.cache import Cache
from t5g2ref.config import Config
from t5g2ref.generate.rules import NO_RULES, Rules, require
from t5g2ref.generate.stop import Decode, Ends, end_ids
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array


class Options(TypedDict, total=False):
    """The keywords; `Settings` says what each is, and has the defaults."""

    attention_mask: Any
    pixel_values: Any
    decoder_input_ids: Any
    decoder_start_token_id: int | None
    max_new_tokens: int
    min_new_tokens: int
    stop: Sequence[int] | None
    stop_strings: Sequence[str]
    decode: Decode | None
    rules: Rules


@dataclass(frozen=True)
class Settings:
    """The options of one call.

    Args:
        attention_mask, pixel_values: as for `T5Gemma2.encode`. Sources of several lengths are padded and masked.
        decoder_input_ids: (B, n) start of the answer; the start id is put in front unless the rows begin with it.
        decoder_start_token_id: that id; the configuration's bos when None.
        max_new_tokens: every row ends with so many; at least 1.
        min_new_tokens: no row ends before.
        stop: ids that end a row; the configuration's eos ids when None, none at all when empty.
        stop_strings: texts that end a row once they are in its new ids' text.
        decode: a row's ids → its text; needed for strings alone.
        rules: what is forbidden or made less likely.
    """

    attention_mask: Any = None
    pixel_values: Any = None
    decoder_input_ids: Any = None
    decoder_start_token_id: int | None = None
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    stop: Sequence[int] | None = None
    stop_strings: Sequence[str] = ()
    decode: Decode | None = None
    rules: Rules = NO_RULES

    def ends(self, config: Config) -> Ends:
        """Where rows end. ValueError for what has no meaning with this configuration."""
        strings = self.stop_strings
        require(not isinstance(strings, str), "stop_strings", "a list of texts", strings)
        size = config.decoder.vocab_size
        if beyond := [token for word in self.rules.bad_words for token in word if token >= size]:
            raise ValueError(f"bad_words: ids must lie in [0, {size}), found {beyond[0]}")
        ids = end_ids(config, self.stop)
        return Ends(ids, tuple(strings), self.decode, self.min_new_tokens, self.max_new_tokens)


@dataclass(frozen=True)
class Begun:
    """A call's beginning: a cache over the encoded source, the start's ids (B, n), the ends and the rules."""

    cache: Cache
    ids: Array
    ends: Ends
    rules: Rules


def begin(model: T5Gemma2, input_ids: Any, options: Options) -> Begun:
    """Check the options, encode the source and start a cache. ValueError as in `Settings` and `T5Gemma2.encode`."""
    settings = Settings(**options)
    ends = settings.ends(model.config)
    encoded = model.encode(input_ids, settings.attention_mask, None, settings.pixel_values)
    batch = encoded.hidden.shape[0]
    start = start_ids(model, settings.decoder_input_ids, batch, settings.decoder_start_token_id)
    return Begun(model.start(encoded), start, ends, settings.rules)


def start_ids(model: T5Gemma2, given: Any, batch: int, first: int | None = None) -> Array:
    """(B, n) decoder ids to begin with: the first (bos) alone, or the given ones with it in front where it is not yet.

    Raises:
        ValueError: a wrong shape; rows of which some begin with it and some do not.
    """
    xp, bos = model.nx.xp, model.config.decoder.bos_token_id if first is None else first
    front = xp.full((batch, 1), bos)
    if given is None:
        return front
    given = inputs.array(model.nx, "decoder_input_ids", given)
    if given.ndim != 2 or given.shape[0] != batch:
        raise ValueError(f"decoder_input_ids: expected ({batch}, length), found shape {tuple(given.shape)}")
    begins = model.nx.backend.host(given[:, :1] == bos)
    if begins.any() and not begins.all():
        raise ValueError(f"decoder_input_ids: some rows begin with bos ({bos}) and some do not; begin all or none")
    return given if begins.size and begins.all() else xp.concatenate([front, given], axis=1)
