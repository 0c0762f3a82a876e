"""A checkpoint's configuration as flat fields, so that a dump of another one is refused by the name of the field.

The fingerprint of the weights cannot tell: a base of RoPE or a window changes every value and no tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from t5g2ref.config import Config
from t5g2ref.config.fields import short

Value = str | int | float | bool | None
UNREAD = ("dtype", "num_labels", "problem_type")  # a case has its own
_SPELLED = {"encoder": "encoder.text_config", "vision": "encoder.vision_config", "theta": "rope_theta"}


def fields_of(config: Config) -> dict[str, Value]:
    """Dotted name, as config.json has it → value. A list's entries stand one by one; missing parts do not."""
    raw: dict[str, Any] = {name: value for name, value in asdict(config).items() if name not in UNREAD}
    for part in ("vision", "decoder"):
        if not raw[f"has_{part}"]:
            del raw[part]
    return dict(_flat("", raw))


def _flat(where: str, value: Any) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == "scaling":  # of a RoPE: config.json has its fields beside theta
                yield from _flat(where, item or {})
            else:
                yield from _flat(f"{where}.{_SPELLED.get(name, name)}".removeprefix("."), item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _flat(f"{where}[{i}]", item)
    else:
        yield where, value


def difference(made_with: Mapping[str, Value], config: Config) -> str:
    """What a dump was made with and the checkpoint has otherwise, in words; "" where nothing differs."""
    ours = fields_of(config)
    names = [name for name in {**ours, **made_with} if _of(made_with, name) != _of(ours, name)]
    if not names:
        return ""
    more = f"; {len(names)} fields differ in all" if len(names) > 1 else ""
    first = names[0]
    found = f"with {short(first)[1:-1]} {short(made_with[first])}" if first in made_with else f"without {first}"
    return f"it was made {found}, the checkpoint has {short(ours[first]) if first in ours else 'no such field'}{more}"


def _of(fields: Mapping[str, Value], name: str) -> tuple[bool, Value, bool]:
    """Whether it is there, its value, and whether that is true or false: Python holds True equal to 1."""
    value = fields.get(name)
    return name in fields, value, isinstance(value, bool)
