"""Twins that answer with the kernel: one decoding step, and ids one after the other, the likeliest or drawn.

Both are left to the definitions where the kernel does not serve: another type, too many rows, a bias, another
activation, weights on demand. Its order of the weights is made once for each decoder, and kept as long as that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from t5g2ref.backend.cuda.decoding.plan import Plan
from t5g2ref.backend.cuda.decoding.session import Launch, Ropes, Session, Settings
from t5g2ref.backend.cuda.decoding.weights import Head, Weights, prepare, prepare_head
from t5g2ref.backend.whole import Chunk, Narrowing, Whole

Array = Any
Definition = Callable[..., Any]
TYPES = ("float32", "bfloat16")
ACTIVATION = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Stepper:
    """The kernel and what it runs on.

    Args:
        launch: queues it.
        card: gives (processors, bytes of shared memory a block may have), or None where no card serves.
    """

    launch: Launch
    card: Callable[[], tuple[int, int] | None]
    _kept: WeakKeyDictionary[Any, dict[str, Any]] = field(default_factory=WeakKeyDictionary)

    def twins(self) -> Mapping[str, Callable[..., Any]]:
        """The operations by their names in `one_step`."""
        return {"whole_step": self.whole_step, "whole_steps": self.whole_steps}

    def plan(self, nx: Any, w: Any, config: Any, batch: int, sampled: bool = False) -> Plan | None:
        """How the kernel is laid out for this decoder (`weights.Stack`, `TextConfig`); None where it is not."""
        card, profile = self.card(), nx.profile
        if card is None or nx.dtype not in TYPES or nx.emulated or not isinstance(w.layers, tuple):
            return None
        if profile.running or profile.round_scores or config.attention_bias or config.hidden_activation != ACTIVATION:
            return None
        if any(weight.dtype != nx.storage for weight in (w.norm.weight, w.layers[0].mlp.down_proj.weight)):
            return None
        plan = replace(plan_of(config, batch, nx.dtype == "bfloat16", card), sampled=sampled)
        return None if plan.refusal() else plan

    def whole_step(
        self, definition: Definition, nx: Any, w: Any, config: Any, x: Array, rope: Any, cache: Any, valid: Array
    ) -> Whole | None:
        plan = self.plan(nx, w, config, x.shape[0])
        if plan is None:
            return None
        settings, room = settings_of(config, 1.0, -1), cache.length + 1
        session = self.session(nx, plan, w, None, settings, cache, room=room, new_valid=valid[:, -1:])
        made = session.run(1, ropes_of(nx, rope), embedded=dense(nx, x[:, 0]), with_head=False, show=True)
        return Whole(made.hidden.swapaxes(0, 1), [made.views(plan, layer) for layer in range(plan.layers)])

    def whole_steps(
        self,
        definition: Definition,
        nx: Any,
        w: Any,
        table: Any,
        config: Any,
        batch: int,
        scale: float,
        eoi_id: int,
        sampling: Narrowing | None = None,
    ) -> Callable[[Any, int], Steps] | None:
        plan = self.plan(nx, w, config, batch, sampling is not None)
        if plan is None or table.weight.dtype != nx.storage:
            return None
        head, settings = self._head(nx, table, plan), settings_of(config, scale, eoi_id)
        return lambda cache, room: Steps(
            nx, self.session(nx, plan, w, head, settings, cache, room=room, sampling=sampling)
        )

    def session(
        self, nx: Any, plan: Plan, w: Any, head: Head | None, settings: Settings, cache: Any, **more: Any
    ) -> Session:
        """The rows of a cache."""
        kept = self._kept.setdefault(w, {})
        if nx.dtype not in kept:
            kept[nx.dtype] = prepare(nx.xp, w, nx.storage, plan)
        weights: Weights = kept[nx.dtype]
        own = [(kv.keys, kv.values, kv.start) for kv in cache.own]
        cross = [(kv.keys, kv.values) for kv in cache.cross]
        valid = {"own_valid": cache.valid, "cross_valid": cache.cross_valid}
        return Session(nx.xp, plan, weights, head, settings, self.launch, own=own, cross=cross, **valid, **more)

    def _head(self, nx: Any, table: Any, plan: Plan) -> Head:
        kept = self._kept.setdefault(table, {})
        if nx.dtype not in kept:
            kept[nx.dtype] = prepare_head(nx.xp, table, nx.storage, plan)
        found: Head = kept[nx.dtype]
        return found


@dataclass(frozen=True)
class Steps:
    """As `one_step.Steps`."""

    nx: Any
    session: Session

    def next(
        self, ids: Array, running: Array, rope: Any, ends: Sequence[int], pad: int, uniform: Array | None = None
    ) -> Chunk:
        ropes = ropes_of(self.nx, rope)
        rows = {"ids": ids, "running": running, "uniform": uniform}
        made = self.session.run(ropes.cosines.shape[1], ropes, **rows, ends=ends, pad=pad)
        _, wrong, count, _ = (int(value) for value in self.nx.backend.host(made.met))  # waits
        assert made.logits is not None
        new, logits = made.ids[1 : count + 1].T.astype(ids.dtype), made.logits[:count].swapaxes(0, 1)
        log_probs = None if made.log_probs is None else made.log_probs[:count].T
        return Chunk(new, logits, made.running != 0, wrong == 0, log_probs)


def plan_of(config: Any, batch: int, half: bool, card: tuple[int, int]) -> Plan:
    """How the kernel is laid out for a `TextConfig`, so many rows, the type and the card."""
    return Plan(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        hidden=config.intermediate_size,
        vocabulary=config.vocab_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        batch=batch,
        half=half,
        processors=card[0],
        memory=card[1],
        capped=config.attn_logit_softcapping is not None,
        last_capped=config.final_logit_softcapping is not None,
    )


def dense(nx: Any, x: Array) -> Array:
    return nx.xp.ascontiguousarray(x)


def ropes_of(nx: Any, rope: Mapping[str, tuple[Array, Array]]) -> Ropes:
    """Tables (B or 1, T, H) by layer kind → (kinds, T, B or 1, H), kinds in alphabetical order."""
    tables = [[rope[kind][i].swapaxes(0, 1) for kind in sorted(rope)] for i in (0, 1)]
    return Ropes(*(nx.xp.stack(parts) for parts in tables))


def settings_of(config: Any, embed_scale: float, eoi_id: int) -> Settings:
    """What the kernel reads of a `TextConfig`."""
    kinds = sorted(set(config.layer_types))
    return Settings(
        windows=tuple(config.window(kind) for kind in config.layer_types),
        kinds=tuple(kinds.index(kind) for kind in config.layer_types),
        embed_scale=embed_scale,
        scale=config.query_pre_attn_scalar**-0.5,
        cap=config.attn_logit_softcapping or 0.0,
        final_cap=config.final_logit_softcapping or 0.0,
        eps=config.rms_norm_eps,
        eoi_id=eoi_id,
    )
