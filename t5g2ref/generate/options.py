"""What every way to generate takes by keyword, and how each begins: source encoded, start checked, ends known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from t5g2ref.cache import Cache
from t5g2ref.config import Config
from t5g2ref.generate.rules import NO_RULES, Rules, require
from t5g2ref.generate.starts import Start, start_of
from t5g2ref.generate.stop import Decode, Ends, end_ids
from t5g2ref.given_masks import is_made
from t5g2ref.model import T5Gemma2


class Options(TypedDict, total=False):
    """The keywords; `Settings` says what each is, and has the defaults."""

    attention_mask: Any
    position_ids: Any
    pixel_values: Any
    inputs_embeds: Any
    decoder_input_ids: Any
    decoder_attention_mask: Any
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
        attention_mask, position_ids, pixel_values: as for `T5Gemma2.encode`, but for 4-D masks. Sources of several
            lengths are padded and masked.
        inputs_embeds: (B, S, D) in the place of input_ids, which are None then.
        decoder_input_ids: (B, n) start of the answer; the start id is put in front unless the rows begin with it.
        decoder_attention_mask: (B, n) of 0 and 1, for starts of several lengths, which are padded in front.
        decoder_start_token_id: that id; the configuration's bos when None.
        max_new_tokens: every row ends with so many; at least 1.
        min_new_tokens: no row ends before.
        stop: ids that end a row; the configuration's eos ids when None, none at all when empty.
        stop_strings: texts that end a row once they are in its new ids' text.
        decode: a row's ids → its text; needed for strings alone.
        rules: what is forbidden or made less likely.
    """

    attention_mask: Any = None
    position_ids: Any = None
    pixel_values: Any = None
    inputs_embeds: Any = None
    decoder_input_ids: Any = None
    decoder_attention_mask: Any = None
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
    start: Start
    ends: Ends
    rules: Rules


def begin(model: T5Gemma2, input_ids: Any, options: Options) -> Begun:
    """Check the options, encode the source and start a cache. ValueError as in `Settings` and `T5Gemma2.encode`."""
    settings = Settings(**options)
    ends = settings.ends(model.config)
    mask = settings.attention_mask
    if mask is not None and is_made(model.nx, "attention_mask", mask):
        raise ValueError("attention_mask: expected (batch, length) of 1 and 0, found a 4-D one; generate takes none")
    encoded = model.encode(
        input_ids, mask, settings.position_ids, settings.pixel_values, inputs_embeds=settings.inputs_embeds
    )
    given = (settings.decoder_input_ids, settings.decoder_attention_mask, settings.decoder_start_token_id)
    start = start_of(model, encoded.hidden.shape[0], *given)
    return Begun(model.start(encoded), start, ends, settings.rules)
