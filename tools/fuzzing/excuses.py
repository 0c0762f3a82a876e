"""The class `known`: a file of known deviations, read, and held against a judgement."""

from __future__ import annotations

from pathlib import Path
from random import Random

from conformance.judge.judgement import Judgement
from conformance.measure.finding import Finding
from conformance.report.known import Known, KnownError, load
from fuzzing import raw, recorded, tree
from fuzzing.tries import Kind

KEYS = ("peer", "case", "tap", "status", "reason", "link", "versions", "x", "a.b", '""', '"\\u0000"', "deviation")
TEXTS = (
    *('"transformers:*"', '"window*"', '"decoder.layers.*.mlp.act_fn"', '"values"', '"nan"', '"GELU"', "'literal'"),
    *('"https://example.org/1"', '{ port = ">=5.20,<5.24" }', '{ port = "===x" }', '{ port = "~=" }', '"*.*"', '"["'),
    *("1", "nan", "-inf", "1e400", "9" * 400, "0x" + "f" * 5000, "1979-05-27T07:32:00Z", "99999-99-99", "true", "[]"),
    *("{ port = [1] }", "[[]]", "{}", '"""\na\n"""', '"\\ud800"', '"\\U00110000"', '"\x1b[2J"', '"x\\u001b"', ""),
    *('"' + "*" * 900 + '"', '"' + "x" * 5000 + '"', "[" * 200 + "]" * 200, "[" * 50_000, "{a=" * 900, "1_0", "+nan"),
    *('{ port = ">=1!1.0" }', '{ port = "' + ">=1," * 60 + '>1" }', '{ port = "==' + "1." * 120 + '*" }', '"(a|a)*$"'),
)
SOUND = {
    "peer": '"transformers:*"',
    "case": '"*"',
    "tap": '"decoder.layers.*.mlp.act_fn"',
    "reason": '"GELU by a table"',
    "link": '"https://example.org/1"',
    "versions": '{ port = ">=1.0" }',
}
HEADS = (
    "[[deviation]]",
    "[[deviation]]",
    "[[deviation]]",
    "[deviation]",
    "[[other]]",
    "[[a.b]]",
    "[" + "a." * 150 + "a]",
)
VERSIONS = ("2.0", "not a version", "1.0+local", "", "1" * 5000)


def base(folder: Path) -> None:
    """Nothing: the files are short, and made from their parts."""


def spoil(rng: Random, base: Path, folder: Path) -> None:
    count = rng.choice((1, 1, 2, 3, 600))
    lines = [line for _ in range(count) for line in (_entry(rng) if count < 9 or rng.random() < 0.01 else _sound())]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    (folder / "known.toml").write_bytes(raw.spoilt(rng, data) if rng.random() < 0.3 else data)


def _sound() -> list[str]:
    return ["[[deviation]]", *(f"{key} = {value}" for key, value in SOUND.items())]


def _entry(rng: Random) -> list[str]:
    """An entry with a line or two of another value, key or place."""
    lines = _sound()
    for _ in range(rng.randint(0, 2)):
        at = rng.randrange(len(lines))
        key, _, value = lines[at].partition(" = ")
        another = rng.choice((*TEXTS, tree.text(tree.hostile(rng))))
        lines[at] = rng.choice(
            (f"{key} = {another}", f"{rng.choice(KEYS)} = {value}", f"{lines[at]}\n{lines[at]}", rng.choice(HEADS))
        )
        lines.insert(at, f"{rng.choice(KEYS)} = {another}" if rng.random() < 0.1 else "")
    return lines


def read(folder: Path, base: Path) -> Known:
    known = load(folder / "known.toml")
    known.check([recorded.target()])
    taps = [Finding(f"decoder.layers.{n}.mlp.act_fn", 0, "values") for n in range(3)]
    judgement = Judgement("transformers:eager:float32", "window", local=taps)
    for version in VERSIONS:
        known.applied(judgement, {"port": version})
    known.states()
    return known


KIND = Kind("known", 3, base, spoil, read, (KnownError,))
