"""Every number that decides a verdict, with its reason and what was measured of it. Reports print them from here.

None was fitted to make a peer pass. Measured figures are those of legal runs and of injected faults on `tiny`; where
they come from stands in `conformance/published/measured.md`.
"""

from __future__ import annotations

# Ratios to a legal run

LIMITS = {"local": 8.0, "cumulative": 8.0, "half": 2.0}
"""The largest ratio that passes, by anchor; "half" is of a half-precision lane's local anchor.

How far apart two legal float32 sums can be: one running sum of n terms has a random-walk error of about √n · u, a
blocked product that keeps 64 partial sums (16 lanes × 4 registers of AVX-512) has √(n / 64) · u, an eighth of it. The
controls take both orders, so a peer should stay near 1. What remains is chance, where a token's error hangs on few
roundings (the scale of a norm), and that the running control takes blocks of terms where the result is large
(`backend.RUNNING_WORK`): a peer that adds one by one was seen at 5 there. A mistake is at `DEFECT` and above. In a
half-precision lane every sum is in float32 and rounded once, so legal runs are close at every tap, and no local limit
is above 2, whatever the bootstrap says. Along a chain of layers their roundings part, so the cumulative limit is the
same in every lane."""

CEILING = 1.0
"""Of the worst-case bound, the largest error that an element may have: legal rounding cannot do more."""

DEFECT = 80.0
"""The least ratio that a mistake in a formula has in float32, ten times the limit: what the tests demand of each that
is put into transformers. It decides no verdict; it says how far the limit is from what it has to tell apart."""

FEW_NUMBERS = 16
"""Fewer numbers of one token, or fewer tokens, do not average out: then the largest legal error stands for all."""

LOGIT_ERRORS = 8.0
"""So many times a control's largest error a logit may be off. A first choice is certified where the margin is above
twice that. It is the largest limit of any lane."""

# Half precision: k from a bootstrap, and the tests of tail and bias

BOOTSTRAP_DRAWS = 400
"""Draws of the bootstrap; k is the largest of them."""

BOOTSTRAP_TOKENS = 32
"""Tokens of one draw at most: more would make k smaller."""

BOOTSTRAP_LEAST = 8
"""Legal errors that a bootstrap needs; of fewer nothing can be drawn, and k is the largest there is."""

UNCLEAR_ERROR = 0.25
"""A legal error of so much of the value: the tap says nothing, and the verdict is INCOMPLETE."""

ROUNDING_FLOOR = 0.25
"""Of u · ‖truth‖, the least error that a token may have: below what one rounding of random numbers costs, 0.41."""

TAIL_ELEMENTS = 64
"""Elements whose largest error is a statistic."""

BIAS = 0.1
"""Mean error, in units of the worst case, beyond the legal profiles': truncation in place of rounding is at 0.5."""

BIAS_ERRORS = 6.0
"""Standard errors that are added to it."""

# Patterns of rounding defects, over all elements of a tap

PATTERN_POWER = 8.0
"""Standard errors that a defect would have to be, for its absence to be said."""

PATTERN_NEAR = 4.0
"""Standard errors within which 1 has to lie, for a coefficient to be the defect's."""

PATTERN_AWAY = 0.25
"""The most that it may be away from 1, however large the error: a root in float16 has 0.68 of D02's pattern."""

PATTERN_AKIN = (0.5, 1.5)
"""A sure coefficient between them that is not the defect's is something like it: the peer deviates all the same."""

PATTERN_PART = 0.1
"""A sure coefficient of so much beyond a legal run's is a part of the defect (some heads, some tokens). A negative one
is none. Legal runs reached 0.064 on `tiny`."""

PATTERN_ROUNDING = 1.1
"""Of the largest legal squared error, what the pattern has to leave at most. Defects of the catalogue left 1.05."""

PATTERN_LEFT = 0.25
"""Of the squared error above a legal one, what may be left besides: a defect hangs on roundings that may fall
otherwise in the peer. Faults that only resemble a defect leave half and more."""

CLUSTERS = 8
"""Tokens, or heads, that a coefficient's error needs: fewer say nothing of it."""

# The name of a defect: the peer's error held against the oracle's with that defect, at the culprit

NAME_NEAR = 0.1
"""How far from 1 the coefficient may be in a half type, where rounding is mixed in."""

NAME_NEAR_FEW = 0.01
"""The same where the tap is a handful of numbers: nothing is left over by chance there."""

NAME_NEAR_SINGLE = 1e-3
"""The same in float32, beside `NAME_SPREADS` standard errors; never above NAME_NEAR_FEW. A peer with that very defect
has 1e-4."""

NAME_SPREADS = 4.0
"""Standard errors of the coefficient that are allowed in float32."""

NAME_LEFT = 0.2
"""Of the error, what the pattern may leave unexplained in a half type: 4 % of the squared error."""

NAME_LEFT_SINGLE = 0.02
"""The same in float32."""

NAME_AKIN = 0.5
"""Of the error, what a pattern that is not the defect's may leave to be called akin: a quarter of the squared error."""

NAME_ALIKE = 2.0
"""Times the smallest misfit: patterns that differ by less than the peer's own rounding are named together."""

NAME_SAME = 8.0
"""Unit roundoffs: the smallest misfit that means anything."""

# The exact lane

PROBE_CLEAR = 4.0
"""What vanishes to the bit was lost in one rounding; the control's error is that of a dozen. A reference that moves by
more than so many control errors shows that the peer had to move too."""
