"""What a server answered as a peer: the log-probabilities of a replay, for the cases that its lines make."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conformance.activations import Dump
from conformance.cases.case import Case, Run
from conformance.cases.least import LOG_PROB_IDS, LOG_PROBS, PAIR
from conformance.errors import UsageError
from conformance.exchange.replay import Line
from conformance.peers.protocol import OptionalMembers
from conformance.target import Target
from t5g2ref.config import Config

AT_ONCE = 64  # positions of one call: logits of 262144 ids in float64 are 2 MB each


class ReplayPeer(OptionalMembers):
    """The lines of a replay under judgement.

    Args:
        name, dtype: of the server, as it is said to run.
        checkpoint: the name of the checkpoint that it runs; "" for whichever is given.
    """

    probed = False  # a file can only be read

    def __init__(self, lines: Sequence[Line], name: str, dtype: str, checkpoint: str = "") -> None:
        self.name, self.dtype, self.taps = name, dtype, PAIR
        self._lines, self._checkpoint = {line.name: line for line in lines}, checkpoint

    def versions(self) -> dict[str, str]:
        return {}

    def accepts(self, target: Target) -> bool:
        return not self._checkpoint or target.name == self._checkpoint

    def open(self, target: Target) -> None:
        """Nothing is loaded: the lines are there."""

    def run(self, case: Case, dump: Dump) -> None:
        line = self._lines[case.name]
        for _, (first, last) in case.calls:
            dump.new_call()
            dump.put(LOG_PROBS, line.log_probs[None, first:last])
            dump.put(LOG_PROB_IDS, line.ids[None, first:last])

    def close(self) -> None:
        """Nothing is held that would have to be freed."""


def cases(lines: Sequence[Line], config: Config) -> list[Case]:
    """A case for each line: the prompt for the encoder, bos and the output but its last id for the decoder.

    Raises UsageError for ids that the checkpoint does not have, and for pictures, which no ids hold.
    """
    if not config.has_decoder:
        raise UsageError("this checkpoint is an encoder alone, expected one with a decoder: a replay scores its output")
    return [_case(line, config) for line in lines]


def _case(line: Line, config: Config) -> Case:
    for name, ids, size in (
        ("prompt_ids", line.prompt, config.encoder.vocab_size),
        ("output_ids", line.output, config.decoder.vocab_size),
        ("top_ids", line.ids, config.decoder.vocab_size),
    ):
        if ids.max() >= size:
            raise UsageError(f"{line.where}: {name} has id {ids.max()}, expected ids below the vocabulary's {size}")
    if (line.prompt == config.image_token_index).any():
        raise UsageError(f"{line.where}: prompt_ids has the image token, expected text: a replay holds no picture")
    decoder_ids = np.concatenate([[config.decoder.bos_token_id], line.output[:-1]]).astype(np.int64)
    whole, rest = divmod(len(decoder_ids), AT_ONCE)
    splits = (AT_ONCE,) * whole + (rest,) * bool(rest)
    run = Run(line.prompt[None], decoder_ids[None], splits=splits if len(splits) > 1 else None)
    return Case(line.name, f"{len(line.prompt)} ids, and {len(line.output)} of the answer", (run,))
