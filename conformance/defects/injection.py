"""What a fault is, and the ways to put one into the reference for one run; nothing of it stays.

A fault changes the configuration, the weights, the inputs, the value of a tap, an operation, or a function of a module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial, reduce
from typing import Any
from unittest import mock

from conformance.cases.case import Case, Run
from conformance.cases.picture import Prepared
from conformance.cases.prompt import GENERATE, Answer, Prompt
from conformance.defects import rounding
from conformance.oracle.run_case import TraceOfCall, program
from t5g2ref.config import Config, TextConfig
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Array, Numerics
from t5g2ref.on_demand import mapped
from t5g2ref.params import tree
from t5g2ref.trace import Trace

Change = Callable[[int, str, Any], Any]
Wrap = Callable[[Any], Any]


@dataclass(frozen=True)
class Setting:
    """All that one run depends on.

    Args:
        weights: canonical name → array of nx's library, a classifier's head among them.
        half: the half type of the lane; bfloat16 where it is none.
    """

    config: Config
    weights: Mapping[str, Any]
    case: Case
    nx: Numerics
    half: str = "bfloat16"

    @property
    def scale(self) -> float:
        """√hidden, near enough for a fault that has it once too often."""
        return float(self.config.decoder.hidden_size**0.5)


@dataclass(frozen=True)
class Spot:
    """A tap of a call that a fault changes."""

    setting: Setting
    call: int
    name: str

    @property
    def layer(self) -> int:
        """The layer in the tap's name."""
        return next(int(part) for part in self.name.split(".") if part.isdigit())

    @property
    def ids(self) -> Array:
        """The ids of the encoder or of the decoder's call, (B, T)."""
        run, (first, last) = self.setting.case.calls[self.call]
        given = run.input_ids if self.name.startswith("encoder.") else run.decoder_input_ids[:, first:last]
        return self.setting.nx.xp.asarray(given)


@dataclass(frozen=True)
class Injection:
    """How a fault gets in.

    Args:
        setting: changes configuration, weights, inputs or numerics.
        taps: makes, for one run, a function (call, tap name, value) of what is shown and used in the value's place.
        patches: (module or class, name, what makes the faulty function of the true one).
        how: all that in words.
    """

    setting: Callable[[Setting], Setting] = lambda s: s
    taps: Callable[[Setting], Change] | None = None
    patches: tuple[tuple[Any, str, Wrap], ...] = ()
    how: str = "nothing is changed"

    def run(self, setting: Setting, trace_of: TraceOfCall) -> None:
        """The case's program with the fault, each call under its own trace. Not for several threads at a time."""
        setting = self.setting(setting)
        change = self.taps(setting) if self.taps else None
        config = replace(setting.config, num_labels=setting.case.num_labels)
        model = T5Gemma2(config, tree(setting.weights), setting.nx)

        def faulty(call: int) -> Trace:
            shown = trace_of(call)
            return shown if change is None else Trace(lambda name, value: shown(name, change(call, name, value)))

        with ExitStack() as stack:
            for owner, name, wrap in self.patches:
                stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
            program(setting.case)(model, faulty)


HEALTHY = Injection()


@dataclass(frozen=True)
class Fault:
    """One fault and what the judge has to say of it.

    Args:
        id, title: of the catalogue (D..) or our own (X..); what is wrong and how it is put in, in words.
        case: in which it has to be found.
        tap, status, call: of the first failing local tap. "half" stands for any test of values in a half type; the tap
            may be a pattern where chance decides in which layer the defect first stands out of the rounding.
        inject: how it gets in; variant tells the faults of one id apart; lane: the peer's type.
        target: "tiny" or "tiny-even"; "massive": seeded weights at tiny's geometry, with activations up to 2e4.
        given: changes the configuration that truth and peer are given alike.
        named: whether its pattern names it: not where what is wrong has a value that no oracle can know (a stale copy).
        alike: other ids that do the very same to the culprit.
        later: whether it begins with the peer's second run, so that one run of a case shows nothing.
        jumps: whether a last bit may move a whole token as far, as where what divides a row is rounded to few bits.
        near: the catalogued defect that it resembles and is not. Whether it is found is not asked; its name is.
        answered, stays: of `generate`: what it makes of an answer; whether a beam keeps its own row's cache.
        prepared: of a peer's own processor: what stands in its place.
    """

    id: str
    title: str
    case: str
    tap: str
    inject: Injection
    status: str = "values"
    call: int = 0
    variant: str = ""
    lane: str = "float32"
    target: str = "tiny"
    given: Callable[[Config], Config] = field(default=lambda c: c)
    named: bool = True
    alike: tuple[str, ...] = ()
    near: str = ""
    later: bool = False
    jumps: bool = False
    answered: Callable[[Prompt, Answer, Config], Answer] | None = None
    stays: bool = False
    prepared: Prepared | None = None

    @property
    def key(self) -> str:
        """Its id with the variant, and the lane where it is not float32."""
        lane = "" if self.lane == "float32" else {"bfloat16": "bf16", "float16": "fp16"}[self.lane]
        return " ".join(filter(None, (self.id, self.variant, lane)))

    @property
    def spoken(self) -> bool:  # on a peer's own generation, where alone it shows
        return self.case.startswith(GENERATE)

    @property
    def beside(self) -> bool:  # it shows beside the model's calls alone: in a peer's own generation or its processor
        return self.spoken or self.prepared is not None

    @property
    def catalogued(self) -> bool:
        return self.id.startswith("D")

    def expects(self, tap: str, status: str, call: int) -> bool:
        """Whether this is what the judge should have found first."""
        statuses = ("values", "tail", "bias", "ceiling", "signature") if self.status == "half" else (self.status,)
        return self.at(tap) and call == self.call and status in statuses

    def at(self, tap: str) -> bool:
        """Whether this is the tap where it should be found."""
        return fnmatchcase(tap, self.tap)


def joined(*injections: Injection) -> Injection:
    """Several injections as one: each works on what those before it have made."""

    def setting(s: Setting) -> Setting:
        for injection in injections:
            s = injection.setting(s)
        return s

    made = [i.taps for i in injections if i.taps]

    def taps(s: Setting) -> Change:
        changes = [make(s) for make in made]
        return lambda call, name, value: reduce(lambda v, change: change(call, name, v), changes, value)

    how = "; ".join(i.how for i in injections)
    return Injection(setting, taps if made else None, tuple(patch for i in injections for patch in i.patches), how)


def configured(change: Callable[[Config], Config]) -> Injection:
    """Another configuration; the weights stay."""
    return Injection(lambda s: replace(s, config=change(s.config)), how="another configuration")


def both_stacks(change: Callable[[TextConfig], TextConfig]) -> Callable[[Config], Config]:
    return lambda config: replace(config, encoder=change(config.encoder), decoder=change(config.decoder))


def stacks(change: Callable[[TextConfig], TextConfig]) -> Injection:
    return configured(both_stacks(change))


def decoding(change: Callable[[TextConfig], TextConfig]) -> Injection:
    return configured(lambda config: replace(config, decoder=change(config.decoder)))


def weighed(pattern: str, change: Callable[[Array, Setting], Array]) -> Injection:
    """Other weights where the name matches; the change returns a new array."""

    def one(setting: Setting, name: str, weight: Array) -> Array:
        return change(weight, setting) if fnmatchcase(name, pattern) else weight

    return Injection(lambda s: replace(s, weights=mapped(s.weights, partial(one, s))), how=f"other weights: {pattern}")


def renamed(source: Callable[[str], str]) -> Injection:
    """Weights under each other's names: `source(name)` is where the weight of that name is taken from."""
    how = "weights under other names"
    return Injection(lambda s: replace(s, weights=mapped(s.weights, lambda n, _: s.weights[source(n)])), how=how)


def inputs(change: Callable[[Run, Setting], Run]) -> Injection:
    """Other inputs than the case gives."""

    def setting(s: Setting) -> Setting:
        return replace(s, case=replace(s.case, runs=tuple(change(run, s) for run in s.case.runs)))

    return Injection(setting, how="other inputs")


def operation(**twins: Callable[..., Any]) -> Injection:
    """Operations exchanged for (definition, nx, *arguments); the fused ones that hold others are taken apart."""
    apart = dict.fromkeys(("add_norm", "turned_norm", "gated_gelu", "scaled_softmax"))

    def setting(s: Setting) -> Setting:
        return replace(s, nx=replace(s.nx, backend=s.nx.backend.with_twins({**apart, **twins})))

    return Injection(setting, how=f"another operation: {', '.join(twins)}")


def rounded(defect: str) -> Injection:
    """A defect of rounding, to the lane's half type."""

    def setting(s: Setting) -> Setting:
        return replace(s, nx=replace(s.nx, backend=s.nx.backend.with_twins(rounding.twins(defect, s.half))))

    names = [name for name, twin in rounding.twins(defect, "bfloat16").items() if twin is not None]
    return Injection(setting, how=f"more rounding in: {', '.join(names)}")


def tapped(pattern: str, change: Callable[[Spot, Array], Array]) -> Injection:
    """Another value at the taps whose names match."""

    def taps(s: Setting) -> Change:
        return lambda call, name, value: change(Spot(s, call, name), value) if fnmatchcase(name, pattern) else value

    return Injection(taps=taps, how=f"another value at {pattern}")


def earlier(tap: Callable[[Config], str], source: Callable[[Config], str]) -> Injection:
    """At a tap, the value that was seen at another one before."""

    def taps(s: Setting) -> Change:
        seen: dict[str, Any] = {}
        there, before = tap(s.config), source(s.config)

        def change(_: int, name: str, value: Any) -> Any:
            if name == before:
                seen[name] = value
            return seen[before] if name == there else value

        return change

    return Injection(taps=taps, how="a tap hands on the value of an earlier one")


def patched(owner: Any, name: str, wrap: Wrap) -> Injection:
    """A function exchanged; `wrap` makes it anew for every run."""
    return Injection(patches=((owner, name, wrap),), how=f"another function: {owner.__name__}.{name}")


def in_single(defect: str, title: str, case: str, tap: str) -> Fault:
    """A defect of rounding that is seen in float32 at once; in a half type only many tokens show it."""
    return Fault(defect, title, case, tap, rounded(defect))


def both_lanes(defect: str, title: str, case: str, tap: str, half: str = "", *, jumps: bool = False) -> list[Fault]:
    """A defect of rounding in a float32 and in a bfloat16 peer, where it is found at `half` if that is given."""
    return [
        Fault(defect, f"{title}, in a float32 run", case, tap, rounded(defect), jumps=jumps),
        Fault(defect, title, case, half or tap, rounded(defect), status="half", lane="bfloat16", jumps=jumps),
    ]
