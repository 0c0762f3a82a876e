"""Draws the judge in one picture: truth, controls and peer meet at a tap.

    python tools/draw_picture.py [FILE]

Names come from the code's own tables: taps from `t5g2ref.taps`, controls from `conformance.oracle.run_case`, the limit
from `conformance.measure.limits`, the gates and their order from `conformance.measure.finding`. A test holds the
committed file equal to what this draws.
"""

from __future__ import annotations

import math
import sys
from html import escape
from pathlib import Path

from conformance.measure.finding import FAILURES
from conformance.measure.limits import LIMITS
from conformance.oracle.run_case import legal
from t5g2ref.config import preset
from t5g2ref.files import write_text
from t5g2ref.numerics import EXACT
from t5g2ref.taps import table

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "conformance" / "published" / "judge.svg"
WIDTH, HEIGHT = 1000, 666
LAYER, TAP = "decoder.layers.3.", "mlp.act_fn"  # where they meet
COLUMNS = (250, 380, 530, 750, 890)  # x of the taps around it, itself in the middle
LEFT, MEET, TURN, RIGHT = 200, COLUMNS[2], 592, 960
TRUTH, CONTROL, PEER = "#1f5fbf", "#1a7f4b", "#c2410c"
INK, FAINT, PAPER, LINE = "#1c1c22", "#5c5c68", "#fcfbf8", "#cfcdc6"
SANS, MONO = "Helvetica, Arial, sans-serif", "Menlo, Consolas, monospace"


def text(x: float, y: float, words: str, size: int = 15, colour: str = INK, **more: str) -> str:
    given = {"font-family": SANS, **{name.replace("_", "-"): value for name, value in more.items()}}
    attributes = " ".join(f'{name}="{value}"' for name, value in given.items())
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" {attributes}>{escape(words)}</text>'


def path(d: str, colour: str, width: float = 2.5, **more: str) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{width:g}"{attributes}/>'


def dot(x: float, y: float, colour: str, radius: float = 5) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{colour}" stroke="{PAPER}" stroke-width="1.5"/>'


def box(x: float, y: float, width: float, height: float, fill: str, line: str, **more: str) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {size} rx="9" fill="{fill}" stroke="{line}"{attributes}/>'


def taps() -> list[str]:
    """The tap where they meet, two before it and two after, as the table has them."""
    names = [tap.name for tap in table(preset("270m"))]
    middle = names.index(LAYER + TAP)
    return [name.removeprefix(LAYER) for name in names[middle - 2 : middle + 3]]


def lanes() -> list[tuple[str, float, str]]:
    """(name, y, colour) of every run from the top down: the truth, a control for each legal profile, the peer."""
    every = [profile.name for profile in legal("bfloat16")]
    controls = [(name, 218 + 26 * n, CONTROL) for n, name in enumerate(every)]
    return [(EXACT.name, 150, TRUTH), *controls, ("peer", 218 + 26 * len(every) + 52, PEER)]


def runs() -> list[str]:
    """The lanes through the layers, and what is said at their left."""
    everyone, always = lanes(), [profile.name for profile in legal("float32")]
    bottom, drawn = everyone[-1][1], []
    for name, y, colour in everyone:
        half = {} if name in (*always, EXACT.name, "peer") else {"stroke_dasharray": "7 5"}
        first, then = (RIGHT, []) if colour == PEER else (MEET, [path(f"M{TURN + 10} {y}H{RIGHT}", colour, **half)])
        drawn += [path(f"M{LEFT} {y}H{first}", colour, **half), *then]
        drawn += [dot(x, y, colour, 8 if x == MEET else 5) for x in COLUMNS]
    controls = [y for _, y, colour in everyone if colour == CONTROL]
    for name, y in [(name, y) for name, y, colour in everyone if colour == CONTROL]:
        drawn.append(text(LEFT - 8, y + 4, name + ("" if name in always else " *"), 12, CONTROL, text_anchor="end"))
    middle = sum(controls) / len(controls)
    for y, title, below, colour in (
        (everyone[0][1], "truth", "ours, in float64", TRUTH),
        (middle, "controls", "ours, in the", CONTROL),
        (bottom, "peer", "the port on trial", PEER),
    ):
        drawn += [text(28, y + 1, title, 20, colour, font_weight="bold"), text(28, y + 19, below, 13, FAINT)]
    drawn.append(text(28, middle + 35, "peer's type", 13, FAINT))
    return drawn


def meeting() -> list[str]:
    """The taps' names, the frame around the one where they meet, and the peer's value that goes back to all."""
    everyone = lanes()
    top, bottom = everyone[0][1], everyone[-1][1]
    drawn = [box(MEET - 24, top - 26, 48, bottom - top + 52, "#fff3c4", "#b98900", stroke_width="2")]
    for x, name in zip(COLUMNS, taps(), strict=True):
        here = {"font_weight": "bold"} if x == MEET else {}
        drawn.append(
            text(x, top - 40, name, 14, INK if here else FAINT, font_family=MONO, text_anchor="middle", **here)
        )
    return drawn


def anchor() -> list[str]:
    everyone = lanes()
    top, bottom = everyone[0][1], everyone[-1][1]
    drawn = [path(f"M{MEET} {bottom}H{TURN - 22}Q{TURN - 10} {bottom} {TURN - 10} {bottom - 12}V{top}", PEER, 3)]
    for _, y, _ in everyone[:-1]:
        drawn.append(path(f"M{TURN - 10} {y}H{TURN + 4}", PEER, 3))
        drawn.append(f'<path d="M{TURN + 2} {y - 6}L{TURN + 14} {y}L{TURN + 2} {y + 6}Z" fill="{PEER}"/>')
    return [
        *drawn,
        text(TURN + 12, bottom - 35, "local anchor: all go on from the peer's value,", 14, PEER, font_weight="bold"),
        text(TURN + 12, bottom - 16, "so a mistake is red where it happens, and not behind it", 14, PEER),
    ]


def ratio(y: float) -> list[str]:
    """The formula, and the scale that it is read on."""
    low, high = 560, 920
    limit, most = LIMITS["local"], 1e7

    def at(value: float) -> float:
        return low + (high - low) * math.log10(value) / math.log10(most)

    def norm(who: str, colour: str, place: float) -> str:
        parts = f'‖ <tspan fill="{colour}">{who}</tspan> − <tspan fill="{TRUTH}">truth</tspan> ‖'
        given = f'font-size="21" font-weight="bold" fill="{INK}" font-family="{SANS}" text-anchor="middle"'
        return f'<text x="270" y="{place:g}" {given}>{parts}</text>'

    return [
        path(f"M{MEET} {lanes()[-1][1] + 26}V{y - 6}", "#b98900", 2),
        box(20, y - 6, 960, 112, "#ffffff", "#b98900", stroke_width="2"),
        text(60, y + 58, "ratio  =", 21, INK, font_weight="bold"),
        norm("peer", PEER, y + 38),
        path(f"M160 {y + 51}H380", INK, 2),
        norm("control", CONTROL, y + 78),
        text(400, y + 48, "for every token,", 14, FAINT),
        text(400, y + 66, "without any atol", 14, FAINT),
        path(f"M{low} {y + 52}H{at(limit):.1f}", CONTROL, 12),
        path(f"M{at(limit):.1f} {y + 52}H{high}", PEER, 12),
        *(
            text(at(value), y + 80, label, 13, INK, text_anchor="middle")
            for value, label in ((1, "1"), (limit, f"{limit:g}"), (100, "100"), (most, "10 000 000"))
        ),
        text(low - 6, y + 34, "legal rounding", 14, CONTROL, font_weight="bold"),
        text(at(100) + 10, y + 34, "a mistake in a formula", 14, PEER, font_weight="bold"),
        text(at(limit), y + 96, "limit in float32", 12, FAINT, text_anchor="middle"),
    ]


def gates(y: float) -> list[str]:
    drawn, x = [text(28, y, "gates, in this order: the first that fails is the finding", 14, FAINT)], 28.0
    for n, name in enumerate(FAILURES):
        width = 7.3 * len(name) + 18
        drawn.append(box(x, y + 12, width, 28, "#ffffff", LINE))
        drawn.append(text(x + width / 2, y + 31, name, 12, INK, font_family=MONO, text_anchor="middle"))
        x += width
        if n + 1 < len(FAILURES):
            drawn.append(text(x + 9, y + 31, "→", 15, FAINT, text_anchor="middle"))
        x += 18
    return drawn


def draw() -> str:
    """The picture as SVG."""
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title">',
        '<title id="title">Truth, controls and peer meet at a tap, where their distances are compared</title>',
        box(1, 1, WIDTH - 2, HEIGHT - 2, PAPER, LINE),
        text(
            28,
            42,
            "Same weights, same inputs, three kinds of run. They meet at every tap.",
            21,
            INK,
            font_weight="bold",
        ),
        text(28, 66, f"Taps of {LAYER.rstrip('.')}, from left to right", 14, FAINT),
        *meeting(),
        *runs(),
        *anchor(),
        *ratio(446),
        *gates(586),
        text(28, 648, "* in bfloat16 and float16 only", 12, FAINT),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    write_text(target, draw())
