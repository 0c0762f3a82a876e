"""What a run could and could not have seen, and what hides each defect.

A verdict over inputs that cannot show a defect says nothing about it. So the report prints the hidden ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from conformance.cases.case import Case
from conformance.defects.catalogue import DEFECTS
from t5g2ref.config import Config, TextConfig
from t5g2ref.dtypes import HALF
from t5g2ref.numerics import Numerics
from t5g2ref.rope import tables

_ALWAYS = {"D50", "D51", "D66", "D83", "D84"}  # any case of the fp32 lane shows these
_HALF = ("D02", "D11", "D12", "D13")  # in float32 there is nothing to see of them
_FAINT = ("D83", "D84", "D85")  # in half types below the rounding: only the tokens of many cases show them
_POWERLESS = "these inputs lack the power to find its pattern"
_SLOTS = ("D57", "D75")  # of a preallocated cache
_ELSEWHERE = {
    "D49": "no checkpoint here sets attn_logit_softcapping (one added where none is set would show in float32)",
    "D57": "only a peer with a preallocated cache can have it (transformers:sdpa-static)",
    "D63": "needs a peer in float16, and activations near its largest number",
    "D75": "only a peer with a preallocated cache can have it (transformers:sdpa-static)",
    "D76": "the cases give ids: a peer that takes embeddings as well is not asked to",
}


_UNSHOWN = dict.fromkeys(
    ("D58", "D77"),
    "picture files are for a peer's own processor, which not every peer here has (or Pillow is missing)",
)  # where the cases give pixel_values alone

_SHARED = ("rms_norm_eps", "query_pre_attn_scalar", "rope_parameters", "sliding_window")  # settings of D71


def _stacks(config: Config) -> tuple[TextConfig, TextConfig]:
    return config.encoder, config.decoder


_HIDDEN: dict[str, tuple[Callable[[Config], bool], str]] = {
    "D50": (
        lambda c: c.decoder.final_logit_softcapping is None or not c.has_decoder,
        "final_logit_softcapping is null: a missing one cannot show (an added one would)",
    ),
    "D46": (
        lambda c: all(s.query_pre_attn_scalar == s.head_dim for s in _stacks(c)),
        "query_pre_attn_scalar equals head_dim",
    ),
    "D47": (
        lambda c: all(s.num_key_value_heads < 2 or s.groups < 2 for s in _stacks(c)),
        "one kv head, or one query head for each: tiled and repeated heads are the same",
    ),
    "D48": (
        lambda c: all(s.head_dim * s.num_attention_heads == s.hidden_size for s in _stacks(c)),
        "head_dim is hidden / heads",
    ),
    "D23": (
        lambda c: all(
            s.rope_parameters["sliding_attention"].theta == 1e4 and s.rope_parameters["full_attention"].theta == 1e6
            for s in _stacks(c)
        ),
        "the thetas are the usual ones, so hard-coding them changes nothing",
    ),
    "D71": (
        lambda c: len({tuple(getattr(s, name) for name in _SHARED) for s in _stacks(c)}) == 1,
        "both stacks have the same eps, scale, thetas and window",
    ),
    "D06": (
        lambda c: (c.image_token_index, c.eoi_token_index) == (256001, 256000),
        "the image ids are the usual ones (an id of another model would still show)",
    ),
}
for _id in ("D52", "D83"):
    _HIDDEN[_id] = (
        lambda c: all(s.hidden_activation != "gelu_pytorch_tanh" for s in _stacks(c)),
        "hidden_activation is another one than tanh GELU",
    )


def _harmless(kind: str, change: Callable[[float], float]) -> Callable[[Config], bool]:
    """Whether another factor at this layer type changes no table. Position 1 is asked: dynamic RoPE grows far away."""

    def hides(config: Config) -> bool:
        nx, near = Numerics("float64"), np.ones((1, 1), int)
        for stack in _stacks(config):
            right = stack.rope_parameters[kind]
            wrong = replace(right, factor=change(stack.rope_parameters["full_attention"].factor))
            found, expected = (tables(nx, rope, stack.head_dim, near) for rope in (wrong, right))
            if not np.array_equal(found, expected):
                return False
        return True

    return hides


for _id, _kind, _change in (
    ("D20", "full_attention", lambda _: 1.0),
    ("D21", "sliding_attention", lambda factor: factor),
    ("D22", "full_attention", lambda factor: factor * factor),
):
    _HIDDEN[_id] = (_harmless(_kind, _change), "the factor is 1, or no table near position 0 depends on it")


# What a peer of few taps does not show; `tests/conformance/test_few_taps.py` holds it against every injected fault.
_FEW = {
    "D29": "a peer shows few taps: the encoder's RoPE is relative, so its own positions show in its tables alone",
    "D54": "a peer shows few taps: a position too many in the cache is masked, and shows in the cached keys alone",
    "D65": "a peer shows few taps, and the loss is not among them",
}
_FEW_HALF = dict.fromkeys(
    (*_HALF, *_FAINT, "D27", "D51", "D52", "D71"),  # of D71, eps
    "a peer in half precision does not show what this operation reads and gives: its rounding hides it",
)
_BLACK_HALF = dict.fromkeys(
    ("D07", "D28", "D34", "D37", "D49", "D50", "D57", "D59", "D60", "D62"),
    "a black box in half precision: behind the whole model the rounding hides some of its variants",
)  # beside those of few taps: what survived when each fault was put into bfloat16 and seen through logits alone

_QUANTISED_HALF = dict.fromkeys(
    (*_HALF, *_FAINT, "D07", "D27", "D49", "D50", "D51", "D52", "D71"),
    "a quantised peer in half precision: its rounding hides this, or some of its variants",
)  # what survived when each fault was put into an engine in bfloat16 with int8 weights


def hidden(
    configs: Iterable[Config],
    cases: Iterable[Case],
    powers: Mapping[str, bool] | None = None,
    few: Iterable[str] = (),
    *,
    outside: Iterable[str] = (),
    quantised: Iterable[str] = (),
    single: bool = True,
    repeated: bool = True,
    preallocated: bool = False,
) -> dict[str, str]:
    """Defect id → why these cases on these checkpoints could not have shown it. A defect is exposed when any
    checkpoint and any case can show it.

    Args:
        powers: defect id → whether its pattern was looked for in half precision, with the power to find it.
        few: types of the peers that do not show every tap.
        outside: types of the black boxes among them.
        quantised: types of the quantised peers.
        single: whether every peer was judged in float32 as well.
        repeated: whether every case was run twice.
        preallocated: whether every peer's cache has its slots before they are filled.
    """
    few = set(few)
    partly = (_FEW if few else {}) | (_FEW_HALF if few & set(HALF) else {})
    partly |= _BLACK_HALF if set(outside) & set(HALF) else {}
    partly |= _QUANTISED_HALF if set(quantised) & set(HALF) else {}
    configs, cases, powers = list(configs), list(cases), powers or {}
    always = _ALWAYS | ({"D80"} if repeated else set()) if any(not case.pictures for case in cases) else set()
    shown = {d for case in cases for d in case.exposes} | always
    reasons: dict[str, str] = {}
    for defect in DEFECTS:
        hides, reason = _HIDDEN.get(defect, (lambda _: False, ""))
        if defect in partly and not powers.get(defect):
            reasons[defect] = partly[defect]
        elif defect in _HALF:
            if not powers.get(defect):
                reasons[defect] = _POWERLESS if defect in powers else "no peer was in half precision (--lane bf16)"
        elif defect in _FAINT and not single and not powers.get(defect):
            reasons[defect] = "below the rounding of a half type, and these are too few tokens: judge --lane fp32 too"
        elif defect == "D80" and not repeated:
            reasons[defect] = "a case was run once: nothing kept from another input could show"
        elif defect in _ELSEWHERE and not (preallocated and defect in _SLOTS):
            reasons[defect] = _ELSEWHERE[defect]
        elif defect not in shown:
            reasons[defect] = _UNSHOWN.get(defect, "no case that was run exposes it")
        elif all(hides(config) for config in configs):
            reasons[defect] = reason
    return reasons


def reach(judged: Iterable[tuple[str, Case]]) -> list[str]:
    """A line that says how many keys the longest rows had: what begins beyond them was not seen.

    Args:
        judged: (type, case) of every peer that was judged on a case.
    """
    longest: dict[str, list[int]] = {}
    for dtype, case in judged:
        most = longest.setdefault(dtype, [0, 0])
        for run in case.runs:
            most[0], most[1] = max(most[0], run.input_ids.shape[1]), max(most[1], run.decoder_input_ids.shape[1])
    parts = [f"{enc} keys of the encoder and {dec} of the decoder in {dtype}" for dtype, (enc, dec) in longest.items()]
    if not parts:
        return []
    return [f"rows had at most {', '.join(parts)}: a tile, sum or counter that begins beyond them was not seen"]
