"""The activations that gate a text layer's feed-forward, by the names of `hidden_activation` in config.json.

Each is computed in `nx.wide` and rounded once, as torch's fused functions are; the releases have tanh GELU. What
transformers composes of single operations instead (gelu_new, quick_gelu) rounds each step in a half type: refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from t5g2ref.numerics import Array, Numerics, twinned
from t5g2ref.ops import gated_gelu, gelu_tanh
from t5g2ref.trace import OFF, Trace


@twinned
def gelu_erf(nx: Numerics, x: Array) -> Array:
    """x/2 · (1 + erf(x / √2)), GELU itself (Hendrycks and Gimpel, 2016). erf is formed in float64 and rounded to the
    wide type, so that 1 + erf loses what it loses in any float32."""
    x = nx.wide(x)
    error = erf(nx.xp, (x * math.sqrt(0.5)).astype("float64")).astype(nx.wide_dtype)
    return nx.cast(0.5 * x * (1.0 + error))


@twinned
def silu(nx: Numerics, x: Array) -> Array:
    """x / (1 + exp(−x)), from exp(−|x|), which cannot overflow."""
    x = nx.wide(x)
    power = nx.xp.exp(-nx.xp.abs(x))
    return nx.cast(x * nx.xp.where(x < 0, power, 1.0).astype(nx.wide_dtype) / (1.0 + power))


@twinned
def relu(nx: Numerics, x: Array) -> Array:
    """x where it is positive, else 0: nothing is rounded."""
    return nx.cast(nx.xp.maximum(nx.wide(x), 0.0))


ACTIVATIONS: Mapping[str, Callable[[Numerics, Array], Array]] = MappingProxyType(
    {"gelu_pytorch_tanh": gelu_tanh, "gelu": gelu_erf, "silu": silu, "swish": silu, "relu": relu}
)


def gated(nx: Numerics, name: str, gate: Array, up: Array, trace: Trace = OFF) -> Array:
    """activation(gate) · up, the activation rounded before the product; tap `act_fn` shows it. The released one is an
    operation of its own, since a GPU has it in one kernel."""
    if name == "gelu_pytorch_tanh":
        return gated_gelu(nx, gate, up, trace)
    return nx.mul(trace("act_fn", ACTIVATIONS[name](nx, gate)), up)


# Rational approximations of erf below 0.46875 and of erfc · exp(x²) above: W. J. Cody, Mathematics of Computation 23
# (1969), 631; coefficients by falling powers, as in netlib's specfun/erf.
_ERF = (
    (0.185777706184603153, 3.16112374387056560, 113.864154151050156, 377.485237685302021, 3209.37758913846947),
    (1.0, 23.6012909523441209, 244.024637934444173, 1282.61652607737228, 2844.23683343917062),
)
_ERFC = (
    (
        *(2.15311535474403846e-8, 0.564188496988670089, 8.88314979438837594, 66.1191906371416295, 298.635138197400131),
        *(881.952221241769090, 1712.04761263407058, 2051.07837782607147, 1230.33935479799725),
    ),
    (
        *(1.0, 15.7449261107098347, 117.693950891312499, 537.181101862009858, 1621.38957456669019),
        *(3290.79923573345963, 4362.61909014324716, 3439.36767414372164, 1230.33935480374942),
    ),
)
_EDGE, _FAR = 0.46875, 6.0  # erfc(6) is 2e-17


def erf(xp: Any, x: Array) -> Array:
    """The error function of a float64 array, to 1e-13."""
    size = xp.minimum(xp.abs(x), _FAR)
    small, large = xp.minimum(size, _EDGE), xp.maximum(size, _EDGE)
    below = small * _ratio(_ERF, small * small)
    above = 1.0 - xp.exp(-large * large) * _ratio(_ERFC, large)
    return xp.where(x < 0, -1.0, 1.0) * xp.where(size <= _EDGE, below, above)


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    top, bottom = (_polynomial(coefficients, x) for coefficients in polynomials)
    return top / bottom


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    value = coefficients[0] + 0.0 * x
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
