"""The class `command line`: values of options, as somebody may type them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from conformance.commands import command_line
from fuzzing import commands, recorded
from fuzzing.tries import Kind
from t5g2ref import command_line as reference

TEXTS = (
    *(
        "",
        " ",
        "-",
        "--",
        "x",
        "-1",
        "0",
        "1",
        "2",
        "nan",
        "inf",
        "1e400",
        "9" * 400,
        "9" * 5000,
        "1_0",
        "0x10",
        "٣",
        "1,2",
    ),
    *(
        "a\nb",
        "\x1b[2J",
        "\ud800",
        "é",
        "\u202e",
        "*",
        "[",
        "[!",
        "?" * 300,
        "[bold]x[/]",
        "[/]",
        "{",
        "%s",
        "~",
        "~root",
    ),
    *("a" * 300, "a/" * 3000, "..", "/", ".", "/dev/null", "/dev/zero", "/nowhere/x", "nowhere", "dump"),
    *(
        "tiny",
        "270m",
        "OWNER/REPO",
        "a/b/c",
        "/b",
        "a/",
        "numpy",
        "cupy",
        "cupy:99999999999",
        "cupy:-1",
        "short",
        "D31",
    ),
    *(
        "process:",
        "process:'",
        "process:float32:",
        "process:nowhere",
        "process:false",
        "dir:dump",
        "dir:",
        "t5g2ref:numpy",
    ),
    *("5,17,42", "5,,17", ",", "99999", "2147483648", "9223372036854775808", "-5", "5.0", "exact", "fp32", "bf16"),
)
JUDGE = ("--ckpt", "--case", "--backend", "--known", "--json", "--html", "--junit", "--synthetic", "--calm", "--detail")
RUN = (*JUDGE[1:], "--peer", "--lane", "--timeout", "--jobs")
DESCRIBE, GENERATE = ("--taps", "--params"), ("--ids", "--prompt", "--image", "--dtype", "--backend", "--pan-and-scan")
FLAGS = ("--synthetic", "--calm", "--detail", "--taps", "--params", "--pan-and-scan")
CHECK = ("check", "dump", "--ckpt", recorded.TINY, "--case", "short", "--no-progress")
STARTS = (  # the words before the options, and the options that there are
    (CHECK, JUDGE),
    (("check", "?", "--case", "short", "--no-progress"), JUDGE),
    (("run", "--peer", "dir:dump", "--ckpt", recorded.TINY, "--case", "short", "--no-progress"), RUN),
    (("list", "?"), ()),
    (("explain", "?"), ()),
    (("export", "out", "--case", "short"), ("--ckpt", "--case", "--synthetic")),
    (("describe", "?"), DESCRIBE),
    (("generate", "tiny", "--max-new-tokens", "2", "--ids", "5,17"), GENERATE),
    (("generate", "?", "--max-new-tokens", "?"), GENERATE),
)
LONG_RUNNING = ("9" * 400, "9" * 5000, "2147483648", "9223372036854775808", "270m")  # lawful, and of no end


def base(folder: Path) -> None:
    recorded.write(folder / "dump", ("short",))


def spoil(rng: Random, base: Path, folder: Path) -> None:
    (folder / "dump").symlink_to(base / "dump")
    words, options = rng.choice(STARTS)
    line = [_word(rng) if word == "?" else word for word in words]
    for _ in range(rng.randint(0, 2) if options else 0):
        option = rng.choice(options)
        line += [option] if option in FLAGS else [option, _word(rng)]
    if rng.random() < 0.1:
        line.insert(rng.randrange(len(line)), _word(rng))
    (folder / "line").write_text("\0".join(line), encoding="utf-8", errors="surrogatepass")


def _word(rng: Random) -> str:
    return rng.choice(TEXTS)


def read(folder: Path, base: Path) -> None:
    line = (folder / "line").read_text(encoding="utf-8", errors="surrogatepass").split("\0")
    if line[0] in ("describe", "generate"):
        commands.ended(*_ran(reference.main, line))
    elif line[0] in ("check", "run"):
        commands.judged(*_judged(line))
    else:
        commands.ended(*_ran(command_line.main, line))


def _ran(main: Callable[[list[str]], int], line: list[str]) -> tuple[int, str, str]:
    """The command; in its complaint stands "…" for what was typed, which is its user's own and may be anything."""
    status, out, err = commands.ran(main, line)
    odd = {form for word in line for form in (word, str(Path(word))) if not word.isprintable() or len(word) > 99}
    for word in sorted(odd, key=len, reverse=True):
        err = err.replace(word, "…")
    return status, out, err


def _judged(line: list[str]) -> tuple[int, str, str]:
    status, out, err = _ran(command_line.main, line)
    return (0, commands.VERDICTS[0], err) if status == 0 and {"-h", "--help"} & set(line) else (status, out, err)


KIND = Kind("command line", 1, base, spoil, read, ())
