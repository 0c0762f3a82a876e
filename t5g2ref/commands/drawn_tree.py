"""The anatomy of a model as text: a tree beside columns, in colour where a terminal shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace

from t5g2ref.commands.anatomy import Node

NAME, SHAPE = 52, 16
COLOURS = {"bold": "1", "quiet": "2", "sliding_attention": "36", "full_attention": "35", "number": "33"}
STAGES = (("encoder.vision", "patch"), ("encoder.multi", "picture"), ("decoder", "output"), ("lm_head", "output"))


def coloured() -> bool:
    """Whether standard output is a terminal that shows colours, and nobody asked for none (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: str, on: bool) -> str:
    """The text in a colour of `COLOURS`; as it is without one."""
    return f"\033[{COLOURS[colour]}m{text}\033[0m" if on and colour in COLOURS else text


def lines(tree: Node, colour: bool) -> Iterator[str]:
    """The whole tree under its heading, a line a node."""
    heading = f"  {'':{NAME}}{'shape':>{SHAPE}}{'parameters':>15}{'bytes':>10}{'FLOPs':>10}"
    yield painted(heading, "quiet", colour)
    yield _line("", tree, "", colour)
    yield from _below(tree, "", "", colour)


def _below(node: Node, path: str, indent: str, colour: bool) -> Iterator[str]:
    """The children; those of a group of layers only where they say more than the group's before it."""
    drawn: list[tuple[object, ...]] = []
    for child in map(_folded, node.children):
        last = child.name == _folded(node.children[-1]).name
        full = f"{path}.{child.name}".removeprefix(".")
        yield _line(indent + ("└─ " if last else "├─ "), child, full, colour)
        seen = _outline(child)
        if not (child.layers and seen in drawn):
            yield from _below(child, full, indent + ("   " if last else "│  "), colour)
        drawn.append(seen)


def _folded(node: Node) -> Node:
    """A module of one parameter and nothing else is that parameter: q_proj.weight."""
    if len(node.children) != 1 or node.children[0].shape is None or node.layers:
        return node
    return replace(node.children[0], name=f"{node.name}.{node.children[0].name}")


def _outline(node: Node) -> tuple[object, ...]:
    """Names and shapes of the parameters: all that two groups of a stack can differ in, but for attention."""
    if node.shape is not None:
        return (node.name, node.shape, node.dtype)
    return tuple(_outline(child) for child in node.children if child.parameters)


def _line(indent: str, node: Node, path: str, colour: bool) -> str:
    name = node.name
    if node.layers:
        said = ", ".join(filter(None, (f"{node.count} {node.kind.removesuffix('_attention')}".strip(), _keys(node))))
        name = f"{said}: {name}"
    name = name if len(indent + name) <= NAME else name[: NAME - len(indent) - 1] + "…"
    tone = node.kind or ("" if node.shape is not None else "bold" if node.parameters else "quiet")
    shape = "" if node.shape is None else " x ".join(map(str, node.shape))
    flops = node.flops[_stage(path)]
    sizes = f"{node.parameters or '':>15,}" if node.parameters else " " * 15
    sizes += f"{short(node.bytes, 'B') if node.bytes else '':>10}{short(flops) if flops and path else '':>10}"
    start = painted(indent, "quiet", colour) + painted(name, tone, colour) + " " * (NAME - len(indent + name))
    return f"  {start}{painted(f'{shape:>{SHAPE}}', 'number', colour)}{sizes}".rstrip()


def _keys(node: Node) -> str:
    """How many keys a query of these layers sees, as their attention says."""
    found = [part.name for child in node.children for part in child.children if part.name.startswith("(attention")]
    return found[0].removeprefix("(attention over ").removesuffix(")") if found else ""


def _stage(path: str) -> str:
    """Whose FLOPs stand beside the node of that path."""
    return next((stage for start, stage in STAGES if path.startswith(start)), "source")


def short(number: int, unit: str = "") -> str:
    """A count in three digits: 2.36 MB, 153 k."""
    value, prefix = float(number), ""
    for larger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, prefix = value / 1000, larger
    digits = f"{value:.3g}" if prefix else str(number)
    return f"{digits} {prefix}{unit}".rstrip()
