"""The command `export`: writes the cases as files, for a program in any language to run."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np

from conformance.cases import catalogue as case_list
from conformance.cases.case import Case
from conformance.cases.plan import plan_of, shape_of, sizes
from conformance.checkpoints import resolve
from conformance.commands import options as shared
from conformance.commands import vectors
from conformance.errors import UsageError
from conformance.exchange import case_words as describe
from conformance.exchange import staged, writing
from conformance.exchange.geometry import fields_of
from conformance.exchange.staged import FORMAT, MANIFEST
from conformance.oracle.run_case import models, program
from conformance.progress import Reporter, reporting
from conformance.target import Target
from t5g2ref import __version__, tap_words
from t5g2ref.dtypes import DType
from t5g2ref.files import write_text
from t5g2ref.trace import Trace

VERSION = 1
LETTERS = {
    "B": "batch",
    "T": "queries, the tokens of this call",
    "S": "keys",
    "D": "hidden width",
    "F": "feed-forward width",
    "N": "query heads",
    "K": "kv heads",
    "H": "head dimension",
    "V": "vocabulary",
    "C": "classes",
    "I": "images",
    "P": "patches of an image",
    "M": "tokens of an image",
    "N*H": "one merged axis, heads outermost",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write; made if it is not there")
    shared.checkpoint(parser)
    shared.cases(parser)
    shared.rows(parser)
    parser.add_argument(
        "--expected", action="store_true", help="write the truth too, at the taps that a dump has to show"
    )
    parser.add_argument("--all-taps", action="store_true", help="with --expected: write the truth at every tap")
    parser.add_argument(
        "--dtype",
        choices=tuple(shared.LANES.values()),
        help="the type that the program runs in (default: float32); pictures, and weights for the truth, are rounded "
        "to it",
    )
    parser.add_argument("--vectors", action="store_true", help=vectors.HELP)
    parser.add_argument("--force", action="store_true", help="write into a folder that holds other files")
    shared.progress(parser)
    shared.defaults(parser)


def main(options: argparse.Namespace) -> int:
    """Write the export; returns 0. Raises UsageError for options or a folder that cannot be used."""
    if options.all_taps and not options.expected:
        raise UsageError("--all-taps says which taps of the truth are written: give --expected too")
    if options.vectors:
        return vectors.main(options)
    options.dtype = options.dtype or "float32"
    _check_folder(options.folder, options.force)
    with reporting(quiet=options.no_progress) as reporter:
        made = {"synthetic": options.synthetic, "calm": options.calm}
        target = resolve(options.ckpt, **made, progress=reporter.tensors)[0]
        build = case_list.build_rows if options.rows else case_list.build
        built = [case for case in build(target.config) if case.asks(options.dtype)]
        shared.check_cases(options.case or [], (case.name for case in built))
        chosen = case_list.select(built, options.case or [])
        with staged.writing(options.folder, (case.name for case in chosen)) as staging:
            _write(staging, target, chosen, options, reporter)
    size = sum(path.stat().st_size for path in options.folder.rglob("*.safetensors"))
    print(f"{len(chosen)} cases of {target.name} in {options.folder}: {size / 2**20:.1f} MiB; README.txt explains them")
    return 0


def _write(folder: Path, target: Target, chosen: list[Case], options: argparse.Namespace, reporter: Reporter) -> None:
    """Write everything, the manifest last."""
    dtype = cast(DType, options.dtype)
    reporter.start(len(chosen) + 1)
    reporter.say("fingerprints of the weights")
    document = _document(target, dtype)
    reporter.step()
    for case in (case.given(dtype) for case in chosen):
        document["cases"][case.name] = entry = _case(folder, target, case, expected=options.expected)
        if options.expected:
            reporter.say(f"{case.name}: truth")
            least = None if options.all_taps else [set(call["minimum"]) for call in entry["calls"]]
            write_truth(folder, target, case, dtype, least)
        reporter.step()
    write_text(folder / "README.txt", "\n".join([README, TAPS, *(f"  {line}" for line in tap_words.lines(118)), ""]))
    write_text(folder / MANIFEST, json.dumps(document, indent=1) + "\n")


def _document(target: Target, dtype: str) -> dict[str, Any]:
    each = describe.fingerprints(target.weights, target.backend)
    shapes = {name: list(value.shape) for name, value in target.weights.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "writer": f"t5g2ref {__version__}",
        "dtype": dtype,
        "checkpoint": {
            "name": target.name,
            "fingerprint": describe.fingerprint(each),
            "config": fields_of(target.config),
        },
        "folder": None if target.folder is None else str(Path(target.folder).absolute()),
        "weights": {name: {"shape": shapes[name], "sha256": digest} for name, digest in each.items()},
        "letters": LETTERS,
        "cases": {},
    }


def _case(folder: Path, target: Target, case: Case, *, expected: bool) -> dict[str, Any]:
    """Write the case's inputs and return its entry for the manifest."""
    entry = describe.words(target.config, case) | {"exposes": case.exposes}
    entry["inputs"] = f"{case.name}/inputs.safetensors"
    writing.tensors(folder / entry["inputs"], describe.inputs(case, target.config.decoder.hidden_size))
    for number, taps in enumerate(describe.tap_shapes(target.config, case)):
        file = f"{case.name}/expected-{number}.safetensors" if expected else None
        entry["calls"][number] |= {"expected": file, "taps": taps}
    return entry


def write_truth(folder: Path, target: Target, case: Case, dtype: DType, wanted: list[set[str]] | None) -> None:
    """Write the float64 truth as `CASE/expected-CALL.safetensors`, each value as soon as it is computed.

    Args:
        dtype: the truth runs with weights rounded to this type, see `run_case.models`.
        wanted: per call, the taps to write; None for all.
    """
    declared: list[dict[str, Any]] = [{} for _ in case.calls]
    for call, tap in plan_of(target.config, case):
        if wanted is None or tap.name in wanted[call]:
            kind = np.dtype(np.bool_ if tap.exact else np.float64)
            declared[call][tap.name] = (kind, shape_of(tap, sizes(target.config, case, call, tap)))
    truth = models(target.config, target.rounded(dtype), case, dtype, target.backend)[0]
    with ExitStack() as stack:
        paths = [folder / case.name / f"expected-{call}.safetensors" for call in range(len(declared))]
        puts = [stack.enter_context(writing.streaming(*each)) for each in zip(paths, declared, strict=True)]

        def trace_of(call: int) -> Trace:
            def sink(name: str, value: Any) -> Any:
                if name in declared[call]:
                    puts[call](name, np.asarray(target.backend.host(value)))
                return value

            return Trace(sink)

        program(case)(truth, trace_of)


def _check_folder(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: this is a file; name a folder")
    if folder.is_dir() and staged.others(folder) and staged.manifest(folder) is None and not force:
        raise UsageError(f"{folder}: holds something else than an export; name another folder, or give --force")


README = """\
Cases for an implementation of T5Gemma 2, written by `python -m conformance export`.

manifest.json   what there is: the checkpoint, its "folder" and its "weights"; and for each case its runs, its calls,
                and what a program may show of each call. "folder" is null for seeded weights; a clone of t5g2ref
                writes those with tools/make_checkpoint.py. "weights" has the sha256 of each tensor's bytes in float32,
                little-endian.
CASE/inputs.safetensors       run0.input_ids, run0.decoder_input_ids, ...; an input that is missing is not given.
CASE/expected-N.safetensors   with --expected: the truth for call N, from the same weights in float64.

How to run a case
  1. Make one model object for the case. A case with task "sequence" or "token" is a classifier: it has the same
     weights, and the `head.score.out_proj.*` of its inputs. One with task "encoder" ends where the encoder does.
  2. For each run, encode input_ids (B, S) with attention_mask (1 keep, 0 padding), position_ids and pixel_values,
     where they are given.
  3. Make the run's calls in order. A call with "decoder": [first, last] feeds decoder_input_ids[:, first:last] with
     decoder_position_ids[:, first:last] and decoder_attention_mask[:, :last].
  "cached": true    each call of the run goes on from the cache of the one before; the encoder runs in the first only.
  "derived": true   the model itself has to make decoder_input_ids, of the labels or else of the encoder's ids. Do not
                    hand them over.
  "logits_to_keep": n   asks for the logits of a call's last n positions only.

What to write
  A folder with one safetensors file for each call, in the type that the model runs in, and this manifest.json:
  {"format": "t5g2ref-dump", "version": 1,
   "peer": {"name": "mine", "dtype": "float32", "versions": {"mine": "1.0"}},
   "checkpoint": (copied from here: name, fingerprint of the weights, config),
   "layouts": {"*.q_norm": "B T N H"},
   "cases": {"short": [{"file": "short/0.safetensors"}]},
   "lacks": ["images", "classes"],
   "skipped": {"image": "no pictures yet"}}

  "lacks" is optional: what the program cannot do, of images, cache, padding, positions, rows, labels, classes and
  forcing (decoder ids that are given). Cases that need it are skipped for that reason; `check --require text` makes a
  verdict of the others. An export with --rows has every batch a row at a time.
  "quantised" is optional: how the linear layers of the stacks are rounded, as "int8-row", "int4-32" or "fp8-row+fp8".
  They are then judged beside our own that are rounded so, and count as right where they are as good.
  "types": {"encoder.vision_tower.*": "float32"} declares where a program in a half type is wider on purpose. It has to
  be float32 there, and is judged so.
  "skipped" is optional: a case that was left out, and why in a line. The verdict is INCOMPLETE all the same.
  A case has one entry for each call. Each tensor is called as its tap is. Other names go beside "file":
  "taps": {"decoder.layers.0": "my tensor"}.
  A call has to show at least its "minimum": the ids as the program saw them, the embeddings, the residual after each
  layer, the encoder's output, and the logits. It may show everything in its "taps", which have axes and shape.
  A program that shows nothing inside shows its "least": logits, or for a language model `log_probs` B T k and the ids
  that they are of, `log_prob_ids` B T k: of all ids, of the top k, or of the next id alone. The ids of its inputs, and
  the encoder's output, may stand beside them. Then every call is judged as a whole.
  `k_rope` is what RoPE returns, before any cache; `keys` is what comes out behind it.
  The axes are the letters of "letters". Declare another order, or heads apart, under "layouts", by name or pattern.
  There, `valid` in place of both token axes means that padding was left out.
  "stored": {"*.mask": "uint8"} declares masks of 0 and 1. "stored": {"*": "float32"} declares that values of a bfloat16
  or float16 model were widened.

Then run: python -m conformance check FOLDER --ckpt ...
"""
TAPS = """\
What the taps are, in each layer (*) and both text stacks. √D is of the width; H, N and K are as in "letters".
"""
