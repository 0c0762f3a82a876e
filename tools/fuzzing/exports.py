"""The class `export`: a folder that holds an earlier export, whose manifest says which files may go."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from conformance.errors import UsageError
from conformance.exchange import staged
from fuzzing import configs, lawful, weights
from fuzzing.tries import Kind

CASES = ("short", "window")
OURS = ("inputs.safetensors", "expected-0.safetensors")
THEIRS = ("notes.txt", "weights.safetensors")
NAMES = ("..", "../outside", "/etc", ".", "short/../../outside", "*", "", "outside", "Short", "short ")


def base(folder: Path) -> None:
    """An export of two cases, with files of somebody else among them."""
    for case in CASES:
        (folder / case).mkdir()
        for name in (*OURS, *THEIRS):
            (folder / case / name).write_text(name)
    cases = {case: {"inputs": f"{case}/inputs.safetensors"} for case in CASES}
    (folder / staged.MANIFEST).write_text(json.dumps({"format": staged.FORMAT, "version": 1, "cases": cases}))


def spoil(rng: Random, base: Path, folder: Path) -> None:
    weights.shutil.copytree(base, folder / "e")
    (folder / "outside").mkdir()
    for name in (*OURS, *THEIRS):
        (folder / "outside" / name).write_text(name)
    path = folder / "e" / staged.MANIFEST
    if rng.random() < 0.4:
        raw = json.loads(path.read_bytes())
        raw["cases"] |= {rng.choice(NAMES): {} for _ in range(3)}
        path.write_text(json.dumps(raw))
    elif rng.random() < 0.8:
        path.write_bytes(configs.spoilt(rng, path.read_bytes()))
    if rng.random() < 0.2:
        (folder / "e" / "linked").symlink_to(folder / "outside")
    if rng.random() < 0.2:
        weights.misplace(rng, folder / "e", folder / "outside")


def read(folder: Path, base: Path) -> None:
    """One case is exported anew. What no export wrote has to stay, whatever the manifest says."""
    root = folder / "e"
    before = {
        p: p.lstat() for p in folder.rglob("*") if p.name not in (*OURS, staged.MANIFEST) or root not in p.parents
    }
    kept = [path for path in before if not path.is_dir()]
    with staged.writing(root, ["short"]) as made:
        (made / "short").mkdir()
        (made / "short" / OURS[0]).write_text("new")
        (made / staged.MANIFEST).write_text("{}")
    if gone := [path for path in kept if not path.exists() and not path.is_symlink()]:
        raise lawful.Unlawful(f"an export took away {gone[0]}")
    if (root / "short" / OURS[0]).read_text() != "new":
        raise lawful.Unlawful("an export was not put into its place")


KIND = Kind("export", 1, base, spoil, read, (UsageError,))
