"""The imports: strictly downward in t5g2ref, no framework in the reference or the judge, no backend by name."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, SUITE = ROOT / "t5g2ref", ROOT / "conformance"
CUDA = PACKAGE / "cuda"

# From the ground up. A module imports from lower layers only; names joined by "+" are one place and may import each
# other. So do siblings not, and what joins them stands above them.
LAYERS = (
    ("config + config_fields + config_json + config_write", "trace", "backend"),
    ("numerics", "taps", "params"),
    ("ops", "rope", "masks", "cache"),
    ("attention", "mlp", "embedding"),
    ("vision", "encoder", "decoder", "heads"),
    ("model + inputs",),
    (
        "weights + weights_write + safetensors_file + safetensors_header + stored",
        "image",
        "text",
        "generate",
        "synthetic",
    ),
    ("__init__",),
    ("__main__",),
)
PLACES = [frozenset(place.split(" + ")) for layer in LAYERS for place in layer]
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for place in layer for name in place.split(" + ")}

BELOW_CUDA = {"backend", "numerics"}  # t5g2ref/cuda stands beside the layers, on these; `backend.find` imports it late
WITHOUT_CUPY = ("__init__", "checks", "loading")  # of t5g2ref/cuda: imported where there is no CuPy

FRAMEWORKS = {"torch", "transformers", "tensorflow", "jax"}
PEERS = {"torch", "transformers"}
MODEL_FILES = (  # written over Numerics
    *("ops", "rope", "masks", "cache", "attention", "mlp", "embedding"),
    *("vision", "encoder", "decoder", "heads", "model"),
)
SCALAR_HELPERS = {"rope": {"inverse_frequencies"}, "embedding": {"embed_scale"}}  # where `np` is a scalar's type


def modules(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py"))


JUDGES = [name for name in modules(SUITE) if not name.startswith("__")]  # all of conformance but its peers


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything that is imported anywhere in the source, inside functions too. For
    `from a import b` both a and a.b: whether b is a module cannot be told from the text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (package if node.level else "", node.module or "")))
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def own(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import from t5g2ref; the package's own names are `__init__`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, *rest = alias.name.split(".")
                if top == PACKAGE.name:
                    yield node.lineno, rest[0] if rest else "__init__"
        elif isinstance(node, ast.ImportFrom):
            top, *rest = ([PACKAGE.name] if node.level else []) + (node.module.split(".") if node.module else [])
            if top == PACKAGE.name and rest:
                yield node.lineno, rest[0]
            elif top == PACKAGE.name:  # `from t5g2ref import x`: the module x where there is one
                for alias in node.names:
                    is_module = (PACKAGE / f"{alias.name}.py").exists() or (
                        PACKAGE / alias.name / "__init__.py"
                    ).exists()
                    yield node.lineno, alias.name if is_module else "__init__"


def upward(name: str, source: str) -> list[str]:
    """What module `name` imports from its own layer, from above or from no layer at all, as messages."""
    place = next(place for place in PLACES if name in place)
    return [
        f"line {line}: {name} (layer {DEPTH[name]}) imports {target} (layer {DEPTH.get(target, 'unknown')})"
        for line, target in own(source)
        if target not in place and DEPTH.get(target, len(LAYERS)) >= DEPTH[name]
    ]


# t5g2ref


def test_every_file_has_a_place() -> None:
    unplaced = [name for name in modules(PACKAGE) if name not in DEPTH]
    assert not unplaced, (
        f"t5g2ref has new files {unplaced}: give each a place in LAYERS of tests/test_layering.py, in the lowest layer "
        "above everything that it imports"
    )


def test_no_name_has_two_places() -> None:
    assert sum(map(len, PLACES)) == len(DEPTH)


@pytest.mark.parametrize("name", modules(PACKAGE))
def test_imports_go_downward(name: str) -> None:
    if name not in DEPTH:
        pytest.skip(f"{name} has no place in LAYERS: test_every_file_has_a_place fails for it")
    wrong = upward(name, (PACKAGE / f"{name}.py").read_text())
    assert not wrong, "\n".join([*wrong, "siblings and higher layers are out of reach: move what is shared downward"])


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("ops", "from t5g2ref.numerics import Numerics", False),
        ("ops", "from t5g2ref.rope import rotate", True),  # a sibling
        ("ops", "from t5g2ref import rope", True),
        ("ops", "import t5g2ref.attention as a", True),
        ("ops", "from .model import T5Gemma2", True),
        ("ops", "from . import model", True),
        ("ops", "def f():\n    from t5g2ref.model import T5Gemma2", True),  # not even late
        ("ops", "import t5g2ref", True),  # the package is on top
        ("ops", "from t5g2ref import __version__", True),
        ("config", "from t5g2ref.config_json import read", False),  # one place
        ("config_json", "from t5g2ref.trace import OFF", True),
        ("model", "from t5g2ref import decoder, inputs", False),
        ("model", "import numpy", False),
    ],
)
def test_the_walk_sees_every_spelling(name: str, line: str, wrong: bool) -> None:
    assert bool(upward(name, line)) is wrong


@pytest.mark.parametrize("name", modules(CUDA))
def test_the_cuda_backend_knows_no_model(name: str) -> None:
    source = (CUDA / f"{name}.py").read_text()
    wrong = [f"line {line}: {target}" for line, target in own(source) if target not in BELOW_CUDA | {"cuda"}]
    assert not wrong, f"t5g2ref/cuda/{name}.py imports {wrong}, but may only {sorted(BELOW_CUDA)}"
    tops = {full.split(".")[0] for _, full in imported(source, "t5g2ref.cuda")}
    assert name not in WITHOUT_CUPY or "cupy" not in tops


@pytest.mark.parametrize(
    "path", [*PACKAGE.glob("*.py"), *SUITE.rglob("*.py")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_nobody_imports_the_cuda_backend(path: Path) -> None:
    # A static import would make CuPy a requirement; `backend.find` imports it by name when it is asked for.
    assert not [line for line, target in own(path.read_text()) if target == "cuda"]


def loaded(statement: str) -> set[str]:
    """Top-level names in sys.modules after `statement` in a fresh interpreter."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_reference_loads_no_framework() -> None:
    names = [f"t5g2ref.{name}" for name in modules(PACKAGE) if name != "__main__"]  # which runs when imported
    names += [f"t5g2ref.cuda.{name}" for name in WITHOUT_CUPY]
    found = loaded("import " + ", ".join(names))
    assert "t5g2ref" in found
    assert not found & (FRAMEWORKS | {"cupy"})


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_reference_names_no_framework(path: Path) -> None:
    source = path.read_text()
    assert "import torch" not in source
    tops = {full.split(".")[0] for _, full in imported(source, "t5g2ref")}
    assert not tops & FRAMEWORKS


# conformance


@pytest.mark.parametrize("name", JUDGES)
def test_the_judge_imports_no_peer(name: str) -> None:
    path = SUITE / f"{name}.py"
    tops = {full.split(".")[0] for _, full in imported(path.read_text(), "conformance")}
    assert not tops & PEERS, f"{path} imports {tops & PEERS}: only conformance/peers may"


def test_importing_the_judge_loads_no_peer() -> None:
    found = loaded("import " + ", ".join(f"conformance.{name}" for name in JUDGES))
    assert "conformance" in found
    assert not found & PEERS


@pytest.mark.parametrize("name", modules(SUITE))
def test_only_peers_know_the_peers(name: str) -> None:
    # DESIGN, Top level. The list above may lag behind the folder; this one cannot.
    tops = {full.split(".")[0] for _, full in imported((SUITE / f"{name}.py").read_text(), "conformance")}
    assert not tops & PEERS


def test_looking_up_peers_imports_none() -> None:
    assert not loaded("import conformance.peers; conformance.peers.names()") & PEERS


# The model is written over Numerics


def words(source: str) -> set[str]:
    """Identifiers and keywords of the code; docstrings and comments may speak of anything."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def numpy_users(source: str) -> set[str]:
    """Names of the outermost functions or classes that use `np`; "" for code outside of them."""
    users = set()
    for top in ast.parse(source).body:
        if any(isinstance(node, ast.Name) and node.id == "np" for node in ast.walk(top)):
            users.add(top.name if isinstance(top, ast.FunctionDef | ast.ClassDef) else "")
    return users


def asks_for_the_backend(source: str) -> list[int]:
    """Lines of comparisons and isinstance checks on an array library, `nx.xp is …` or `xp == …`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "hasattr"):
            sides = list(node.args)
        for side in sides:
            last = side.attr if isinstance(side, ast.Attribute) else side.id if isinstance(side, ast.Name) else ""
            if last in ("xp", "np", "cp", "emulated", "ndarray"):
                found.append(node.lineno)
    return sorted(set(found))


@pytest.mark.parametrize("name", MODEL_FILES)
def test_the_model_names_no_backend(name: str) -> None:
    # Broken by `import cupy`, `if backend == …`, `if nx.xp is np`: the same lines must run on every array library.
    source = (PACKAGE / f"{name}.py").read_text()
    assert not words(source) & {"cupy", "cp", "backend", "cuda"}
    assert not asks_for_the_backend(source)
    numpy = {"numpy"} & {full.split(".")[0] for _, full in imported(source, "t5g2ref")}
    assert not numpy or name in SCALAR_HELPERS, f"{name} imports numpy: take the array library from nx.xp"
    assert numpy_users(source) == SCALAR_HELPERS.get(name, set())


@pytest.mark.parametrize("line", ["if nx.xp is np: pass", "if xp == other: pass", "isinstance(x, np.ndarray)"])
def test_asking_for_the_backend_is_seen(line: str) -> None:
    assert asks_for_the_backend(line) == [1]
