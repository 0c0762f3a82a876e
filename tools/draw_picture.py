"""Draw conformance/published/judge.svg: truth, controls and peer meet at a tap.

    python tools/draw_picture.py [FILE]

Names of taps, profiles and gates are the code's own, so that the picture cannot speak of what is not there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, installed or not

from conformance.measure.finding import FAULTS
from conformance.measure.limits import LIMITS
from t5g2ref import bundled, taps
from t5g2ref.config import Config
from t5g2ref.numerics import EXACT, RUNNING, SDPA

FILE = Path(__file__).resolve().parent.parent / "conformance" / "published" / "judge.svg"
LAYER, MEETING = "decoder.layers.0", "mlp.act_fn"
WIDTH, HEIGHT, LEFT, STEP = 960, 372, 196, 104
STYLE = """\
text{font:13px system-ui,sans-serif;fill:#1b1f24}.small{font-size:11px;fill:#57606a}.name{font-weight:600}
.truth{stroke:#1a7f37}.control{stroke:#0969da}.peer{stroke:#bc4c00}line,path{stroke-width:2.5;fill:none}
.dot{stroke:none}.t{fill:#1a7f37}.c{fill:#0969da}.p{fill:#bc4c00}.box{fill:#f6f8fa;stroke:#8c959f;stroke-width:1.5}
.back{fill:#ffffff}.again{stroke:#bc4c00;stroke-dasharray:4 3;stroke-width:1.5}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}.back{fill:#0d1117}.box{fill:#161b22}}"""


def shown() -> list[str]:
    """Taps of one layer around the one where they meet, in the order of the computation."""
    config = Config.load(bundled("tiny"))
    names = [t.name.removeprefix(f"{LAYER}.") for t in taps.table(config) if t.name.startswith(f"{LAYER}.")]
    at = names.index(MEETING)
    return names[at - 3 : at + 4]


def lanes() -> list[tuple[str, str, str, str]]:
    """Of each lane: its class, what it is, in which numbers, by which profile."""
    return [
        ("truth", "truth", "float64", EXACT.name),
        ("control", "controls", "the peer's type", f"{SDPA.name}, {RUNNING.name}"),
        ("peer", "peer", "float32 or a half type", "any implementation"),
    ]


def short(name: str) -> str:
    """A tap's last part, as far as there is room."""
    return name.rpartition(".")[2].replace("feedforward_layernorm", "ffw_norm")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def lane(y: int, kind: str, what: str, numbers: str, profile: str, names: list[str]) -> list[str]:
    """A line through the layer, a dot at every tap."""
    last = LEFT + STEP * (len(names) - 1)
    dots = [f'<circle cx="{LEFT + STEP * i}" cy="{y}" r="5" class="dot {kind[0]}"/>' for i in range(len(names))]
    line = f'<line x1="{LEFT - 40}" y1="{y}" x2="{last + 44}" y2="{y}" class="{kind}"/>'
    return [
        text(20, y - 3, what, "name"),
        text(20, y + 13, numbers, "small"),
        text(20, y + 27, profile, "small"),
        line,
        *dots,
    ]


def draw() -> str:
    """The picture as SVG."""
    names, ys = shown(), [96, 152, 208]
    at = LEFT + STEP * names.index(MEETING)
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" class="back"/>']
    parts.append(
        text(20, 32, f"One layer, {LAYER}: every named value is a tap. All runs meet at each of them.", "name")
    )
    parts += [text(LEFT + STEP * i, 64, short(name), "small", "middle") for i, name in enumerate(names)]
    parts.append(f'<rect x="{at - 34}" y="74" width="68" height="158" rx="8" class="box"/>')
    for y, row in zip(ys, lanes(), strict=True):
        parts += lane(y, *row, names)
    parts += [*anchor(at, ys), *words(at)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
    title = "<title>Truth, controls and peer meet at a tap</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def anchor(at: int, ys: list[int]) -> list[str]:
    """The peer's value goes on in every lane."""
    turn, low = at + STEP - 16, ys[2]
    curves = [(at + 46, low - 20, ys[1] + 24, ys[1] + 8), (at + 60, low - 40, ys[0] + 50, ys[0] + 8)]
    paths = [
        f'<path d="M{at + 8} {low}C{x} {y} {turn - 8} {b} {turn} {end}" class="again"/>' for x, y, b, end in curves
    ]
    said = ("local anchor: all go on with the peer's value,", "so a fault lights its own row and no other")
    return [*paths, *(text(at + 52, low + 26 + 15 * i, line, "small") for i, line in enumerate(said))]


def words(at: int) -> list[str]:
    """What is done at the meeting, below it."""
    gates, limit = " → ".join(("present", *FAULTS[1:4], "values")), LIMITS["local"]
    return [
        f'<line x1="{at}" y1="232" x2="{at}" y2="268" class="peer"/>',
        text(20, 292, "ratio of a token = ‖peer − truth‖ / ‖control − truth‖", "name"),
        text(
            20,
            314,
            f"1: as far from the truth as this precision has to be. Up to {limit:g} passes; a defect is at 100.",
        ),
        text(20, 336, f"Gates, in this order: {gates}. What is missing or not a number never passes."),
        text(20, 356, "The first failing tap is the culprit; its pattern is compared with every defect's.", "small"),
    ]


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else FILE).write_text(draw(), encoding="utf-8")
