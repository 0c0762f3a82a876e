"""The house: one table of rooms for both packages, and the imports that it allows. The README's map is this table.

A file imports from what stands before it in the table and from nothing else, so that no import goes up and no two files
import each other. No framework in the reference or the judge, no backend by name in the model.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT, python

PACKAGE, SUITE = ROOT / "t5g2ref", ROOT / "conformance"

# From the ground up: a room and its files. Files between two bars know nothing of each other; a file knows those behind
# it in earlier groups and earlier rows. A room may have several rows.
LAYERS = """
t5g2ref: trace dtypes files streams notes
t5g2ref/config: fields | read_ropes | read ropes | remarks write | geometry | presets | __init__
t5g2ref/backend: arena crew whole | interface
t5g2ref/backend/cuda: blas checks kernels loading sharing | fused flash graphs
t5g2ref/backend/cuda/decoding: plan | weights | session | launch stepping | __init__
t5g2ref/backend/cuda: fast device | __init__
t5g2ref/backend: find | __init__
t5g2ref: numerics on_demand | weights | blocks taps params cache | embedding ops rope_types masks | rope activation
t5g2ref: attention
t5g2ref: mlp outputs tap_inputs tap_words one_step
t5g2ref: vision encoder decoder inputs | given_masks | model
t5g2ref/checkpoint: header tensor refusal | file fetch | names write synthetic | opened | fit hub | folder find
t5g2ref/checkpoint: __init__
t5g2ref/processor: crops picture_files rule tokenizer_json | image settings | marks | text | prepare | __init__
t5g2ref: __init__
t5g2ref/generate: processors | rules | hypotheses stop starts | options | steps | at_once
t5g2ref/generate: greedy sample beam | __init__
t5g2ref/atlas: places tokens attending pictures plots | seen | grids | looking | gather | heads way | view
t5g2ref/atlas: page | __init__
t5g2ref/commands: folders prompts anatomy | drawn_tree generate_options choosing answers example
t5g2ref/commands: describe generate atlas | __init__
t5g2ref: command_line | __main__
conformance: errors arrays terminal | progress
conformance/cases: each_kind picked picture prompt | case ingredients | long rows forced generating pictured
conformance/cases: abilities catalogue plan
conformance/cases: least token_words | __init__
conformance: target activations | checkpoints
conformance/measure: causes distance limits sums_at_once words | finding match sums logits regression | bound
conformance/measure: ratio | half accumulated | __init__
conformance/oracle: at_picked beams taking_turns quantised angles score_rows | worst_case | side_by_side | run_case
conformance/oracle: expected | __init__
conformance/defects: catalogue rounding | exposure injection
conformance/defects: arithmetic attention embedding masks norms outputs positions settings vision
conformance/defects: cached generating padding pictures steps windows
conformance/defects/uncatalogued: attention elements lengths outputs rows runs stream weights | pictures | __init__
conformance/defects/near: shortened | activation attention norms tables | __init__
conformance/defects: all | __init__
conformance/exchange: channel geometry plain reading replay writing staged | manifest layouts case_words
conformance/exchange: arrange vectors | __init__
conformance/peers: guard picked_trace | protocol | reference folder made replay function later
conformance/peers/torch: generating long_rows pictures releases static_cache streamed tensors
conformance/peers/torch: hooks onnx_graphs | transformers
conformance/peers/torch: compiled onnx_peer | made
conformance/peers/torch: __init__
conformance/peers: process entry_points python_file | boxed | find | __init__
conformance/peers/engines: wire | keras_places mlx_watch | keras_cases keras_watch | ctranslate2 keras_hub mlx_audio
conformance/peers/engines: __init__
conformance/judge: apart evidence | faulty_walk judgement meeting | comparisons name_pair operations patterns
conformance/judge: given_ids half_lane lanes logit_watch name_defect | typed_lane
conformance/judge: positions | steady together walk choices | along | judge pictured pooled | generated
conformance/judge/exact: probes | moves | lane | __init__
conformance/judge/hypotheses: oracles | fit | search | diagnosis | __init__
conformance/judge: sitting | session | __init__
conformance/report: called candidates cards coverage diagnoses explain log_probs result known spread terms
conformance/report: document conclusion
conformance/report: document_write explained junit badge | text | files
conformance/report/html: commands masks depth | comparisons | causes | markdown | view | page | __init__
conformance/report: __init__
conformance/sweep: task share client whole room lent heap | pool header record forecast | remote alike kept card
conformance/sweep: cluster | engine
conformance/sweep: workers keeping merging | so_far | __init__
conformance/selftest: faulty_peer legal preparing_peer | speaking_peer black_box false_alarms | trial
conformance/selftest: diagnoses matrix workers | __init__
conformance/commands: options required diagnose | request vectors explain listing black_boxes
conformance/commands: run merged_result | check merge replay selftest export | command_line
conformance/commands: __init__
conformance/examples: hooks_dump forty_lines logits_only | __init__
conformance/published/findings: ctranslate2_t5gemma2 keras_hub_t5gemma2 mlx_audio_t5gemma2
conformance/published/findings: transformers_t5gemma2_encoder transformers_t5gemma2_generate
conformance/published/findings: pillow_turned_tiff transformers_gemma3_processor
conformance: testing
conformance/commands: pytest_plugin
conformance: __init__ | __main__
"""
ROOMS = {  # and the question that each answers
    "t5g2ref": "the model, flat, in reading order",
    "t5g2ref/config": "the geometry, from config.json",
    "t5g2ref/backend": "the array library: NumPy, or CuPy in `cuda/`",
    "t5g2ref/checkpoint": "checkpoints, untrusted",
    "t5g2ref/processor": "pictures and text",
    "t5g2ref/generate": "words out",
    "t5g2ref/atlas": "what happened, drawn",
    "t5g2ref/commands": "the command",
    "conformance": "what every room needs: target, checkpoints, activations",
    "conformance/cases": "What is asked?",
    "conformance/measure": "How far is one tap?",
    "conformance/oracle": "What is right?",
    "conformance/defects": "What do ports get wrong?",
    "conformance/exchange": "What crosses the border?",
    "conformance/peers": "Who is asked?",
    "conformance/judge": "Who is to blame?",
    "conformance/report": "What is said?",
    "conformance/sweep": "How are many done at once?",
    "conformance/selftest": "Is the judge any good?",
    "conformance/commands": "What can one type?",
    "conformance/examples": "ports to copy from",
}


def rows() -> list[tuple[str, str]]:
    """(room, its files) of every row of the table."""
    return [(room, files) for room, _, files in (row.partition(": ") for row in LAYERS.strip().splitlines())]


def places() -> dict[str, int]:
    """Module → its group's number from the ground up."""
    groups = [(room, group) for room, files in rows() for group in files.split("|")]
    return {f"{room}/{name}": n for n, (room, group) in enumerate(groups) for name in group.split()}


DEPTH = places()
FRAMEWORKS = {"torch", "transformers", "tensorflow", "jax", "keras", "mlx"}
WITHOUT_CUPY = ("__init__", "checks", "loading")  # of t5g2ref/backend/cuda: imported where there is no CuPy
PEERS = {"torch", "transformers", "ctranslate2", "keras", "keras_hub", "mlx", "mlx_audio", "onnxruntime", "onnxscript"}
MODEL_FILES = (  # written over Numerics
    *("ops", "activation", "rope", "rope_types", "masks", "cache", "attention", "mlp", "embedding"),
    *("vision", "encoder", "decoder", "outputs", "model"),
)
SCALAR_HELPERS = {"rope": {"inverse_frequencies"}, "embedding": {"embed_scale"}}  # where `np` is a scalar's type


def files() -> list[str]:
    """Every file of both packages, as the table names it."""
    found = [path for folder in (PACKAGE, SUITE) for path in folder.rglob("*.py")]
    return sorted(str(path.relative_to(ROOT).with_suffix("")) for path in found)


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


def own(source: str, package: str = "t5g2ref") -> Iterator[tuple[int, str]]:
    """(line, file) of every import from one of our packages: the file that is named, or the room's `__init__`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, _file(alias.name)) for alias in node.names if _ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (package if node.level else "", node.module or "")))
            if _ours(base):
                yield from ((node.lineno, _file(base, alias.name)) for alias in node.names)


def _ours(name: str) -> bool:
    return name.split(".")[0] in (PACKAGE.name, SUITE.name)


def _file(module: str, name: str = "") -> str:
    """The file that defines `name` of a module, or that the module is."""
    for path in (f"{module}.{name}" if name else module, module):
        plain = path.replace(".", "/")
        if (ROOT / f"{plain}.py").exists():
            return plain
        if (ROOT / plain / "__init__.py").exists():
            return f"{plain}/__init__"
    return module.replace(".", "/")


def upward(file: str, source: str) -> list[str]:
    """What a file imports from its own group, from above or from no place at all, as messages."""
    package = file.rpartition("/")[0].replace("/", ".")
    return [
        f"line {line}: {file} (group {DEPTH[file]}) imports {target} (group {DEPTH.get(target, 'unknown')})"
        for line, target in own(source, package)
        if DEPTH.get(target, len(DEPTH)) >= DEPTH[file]
    ]


# The table


def test_every_file_has_one_place() -> None:
    named = [f"{room}/{name}" for room, files in rows() for name in files.replace("|", " ").split()]
    assert sorted(named) == files(), (
        "give each new file a place in LAYERS of tests/test_layering.py, in the lowest group above all that it imports"
    )


@pytest.mark.parametrize("file", files())
def test_imports_go_downward(file: str) -> None:
    if file not in DEPTH:
        pytest.skip(f"{file} has no place in LAYERS: test_every_file_has_one_place fails for it")
    wrong = upward(file, (ROOT / f"{file}.py").read_text())
    assert not wrong, "\n".join([*wrong, "siblings and higher groups are out of reach: move what is shared downward"])


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("t5g2ref/ops", "from t5g2ref.numerics import Numerics", False),
        ("t5g2ref/ops", "from t5g2ref.rope import rotate", True),  # a sibling
        ("t5g2ref/ops", "from t5g2ref import rope", True),
        ("t5g2ref/ops", "import t5g2ref.attention as a", True),
        ("t5g2ref/ops", "from .model import T5Gemma2", True),
        ("t5g2ref/ops", "from . import model", True),
        ("t5g2ref/ops", "def f():\n    from t5g2ref.model import T5Gemma2", True),  # not even late
        ("t5g2ref/ops", "import t5g2ref", True),  # the package is on top
        ("t5g2ref/ops", "from t5g2ref import __version__", True),
        ("t5g2ref/config/geometry", "from t5g2ref.config.read import read", False),
        ("t5g2ref/config/read", "from t5g2ref.config import Config", True),  # its own room's door
        ("t5g2ref/model", "from t5g2ref import decoder, inputs", False),
        ("t5g2ref/model", "import numpy", False),
        ("conformance/cases/plan", "from conformance.judge.judge import judge", True),
        ("conformance/judge/walk", "from conformance.measure import half", False),
        ("conformance/report/text", "from conformance.commands import options", True),
        ("conformance/defects/norms", "from conformance.nowhere import thing", True),
    ],
)
def test_the_walk_sees_every_spelling(file: str, line: str, wrong: bool) -> None:
    assert bool(upward(file, line)) is wrong


def test_the_hall_is_small() -> None:
    assert len(list(SUITE.glob("*.py"))) <= 10


def test_the_readme_s_map_is_this_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", readme, re.MULTILINE)) == ROOMS
    assert {room for room, _ in rows()} >= set(ROOMS)


# Frameworks and array libraries


@pytest.mark.parametrize("name", [file for file in files() if file.startswith("t5g2ref/backend/cuda/")])
def test_what_needs_no_cupy_imports_none(name: str) -> None:
    tops = {full.split(".")[0] for _, full in imported((ROOT / f"{name}.py").read_text(), "t5g2ref.backend.cuda")}
    assert name.rpartition("/")[2] not in WITHOUT_CUPY or "cupy" not in tops


@pytest.mark.parametrize("file", [file for file in files() if not file.startswith("t5g2ref/backend/cuda/")])
def test_nobody_imports_the_cuda_backend(file: str) -> None:
    # A static import would make CuPy a requirement; `backend.find` imports it by name when it is asked for.
    source = (ROOT / f"{file}.py").read_text()
    assert not [line for line, target in own(source) if target.startswith("t5g2ref/backend/cuda")]


def loaded(statement: str) -> set[str]:
    """Top-level names in sys.modules after `statement` in a fresh interpreter."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = python("-W", "error", "-c", program)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def dotted(file: str) -> str:
    return file.removesuffix("/__init__").replace("/", ".")


def test_importing_the_reference_loads_no_framework() -> None:
    chosen = [f for f in files() if f.startswith("t5g2ref/") and not f.endswith("__main__")]  # which runs when imported
    without = [f"t5g2ref/backend/cuda/{name}" for name in WITHOUT_CUPY]
    found = loaded("import " + ", ".join(dotted(f) for f in chosen if "/cuda/" not in f or f in without))
    assert "t5g2ref" in found
    assert not found & (FRAMEWORKS | {"cupy"})


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_reference_names_no_framework(path: Path) -> None:
    source = path.read_text()
    assert "import torch" not in source
    tops = {full.split(".")[0] for _, full in imported(source, "t5g2ref")}
    assert not tops & FRAMEWORKS


MAY_KNOW_A_PEER = (
    *("conformance/peers/torch/", "conformance/peers/engines/", "conformance/examples/"),
    "conformance/published/findings/",  # which need the peer alone
)


@pytest.mark.parametrize("file", [f for f in files() if f.startswith("conformance/")])
def test_only_peers_know_the_peers(file: str) -> None:
    tops = {full.split(".")[0] for _, full in imported((ROOT / f"{file}.py").read_text(), "conformance")}
    assert file.startswith(MAY_KNOW_A_PEER) or not tops & PEERS, (
        f"only conformance/peers/torch may import {tops & PEERS}"
    )


def test_importing_the_judge_loads_no_peer() -> None:
    chosen = [f for f in files() if f.startswith("conformance/") and not f.startswith(MAY_KNOW_A_PEER)]
    found = loaded("import " + ", ".join(dotted(f) for f in chosen if not f.endswith("__main__")))
    assert "conformance" in found
    assert not found & PEERS


def test_looking_up_peers_imports_none() -> None:
    assert not loaded("import conformance.peers.find as find; find.names()") & PEERS


# Sizes

DECORATORS = {  # their wrappers have any signature
    ("t5g2ref/blocks", "call"),
    ("t5g2ref/numerics", "call"),
    ("t5g2ref/model", "call"),
    ("conformance/peers/engines/keras_watch", "seen"),
}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of both packages, with its file."""
    for file in files():
        for node in ast.walk(ast.parse((ROOT / f"{file}.py").read_text())):
            if isinstance(node, ast.FunctionDef):
                yield file, node


def test_files_and_functions_are_short() -> None:
    assert not [file for file in files() if len((ROOT / f"{file}.py").read_text().splitlines()) > 300]
    found = [(file, node.name, (node.end_lineno or 0) - node.lineno + 1) for file, node in functions()]
    assert len(found) > 1000
    assert not [one for one in found if one[2] > 50]


def test_only_decorators_hand_any_arguments_on() -> None:
    assert {(file, node.name) for file, node in functions() if node.args.vararg and node.args.kwarg} == DECORATORS


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
