"""Cases about the rows of a batch: as many as heads, one that is padded, and every batch a row at a time."""

from __future__ import annotations

from dataclasses import fields, replace

from conformance.cases.case import Case, Run
from conformance.cases.ingredients import Kit

ALONE = "-rows"  # behind the name of a case whose batches are given a row at a time


def masked_steps(k: Kit) -> Case:
    """A cache that drops its first positions has to drop them of the mask, too."""
    w = k.config.decoder.sliding_window
    ids, mask = k.padded([w // 2 + 4, 2], "left")
    decoder_ids, decoder_mask = k.padded([w + 4, w + 2], "left")
    ids[1, -1] = decoder_ids[1, 3] = 0  # as in every padded row: a token like any other
    one = Run(ids[1:], decoder_ids[1:], mask[1:], decoder_attention_mask=decoder_mask[1:], splits=(w + 1, 1, 2))
    run = replace(one, logits_to_keep=k.keep(decoder_ids.size))
    exposes = ("D28", "D34", "D38", "D39", "D42", "D54", "D56", "D74")
    return Case("masked-steps", "one row padded left, cached past the window", (run,), exposes=exposes)


def rows_as_heads(k: Kit) -> Case:
    """Where both are as many, a mask that is laid over the wrong axis has the right shape."""
    runs = [_of_rows(k, stack.num_attention_heads) for stack in (k.config.encoder, k.config.decoder)]
    title = "as many rows as query heads, padded, in each stack"
    return Case("rows-as-heads", title, tuple(runs), exposes=("D38", "D39", "D42"))


def _of_rows(k: Kit, rows: int) -> Run:
    ids, mask = k.padded([6 - row % 4 for row in range(rows)], "left")
    decoder_ids, decoder_mask = k.padded([2 + row % 4 for row in range(rows)], "left")
    return Run(ids, decoder_ids, mask, decoder_attention_mask=decoder_mask)


def alone(case: Case, image_id: int) -> Case:
    """The case with its batches given a row at a time, masks as they are: runs of one row, one after the other."""
    if all(len(run.input_ids) == 1 for run in case.runs):
        return case
    runs = tuple(_shown(one) for run in case.runs for one in _rows_of(run, image_id))
    return replace(case, name=case.name + ALONE, title=f"{case.title}, a row at a time", runs=runs)


_NOT_BY_ROW = ("pixel_values", "splits", "derived", "logits_to_keep", "picked", "cut")
_BY_ROW = tuple(f.name for f in fields(Run) if f.name not in _NOT_BY_ROW)


def _rows_of(run: Run, image_id: int) -> list[Run]:
    """Runs of one row each, with the pictures that belong to it."""
    given = {name: value for name in _BY_ROW if (value := getattr(run, name)) is not None}
    rows = [replace(run, **{n: v[i : i + 1] for n, v in given.items()}) for i in range(len(run.input_ids))]
    pixels = run.pixel_values
    if pixels is None:
        return rows
    slots = (run.input_ids == image_id).sum(axis=1)
    ends = (slots.cumsum() * len(pixels) // slots.sum()).tolist()
    parts = [pixels[first:last] if last > first else None for first, last in zip([0, *ends[:-1]], ends, strict=True)]
    return [replace(row, pixel_values=part) for row, part in zip(rows, parts, strict=True)]


def _shown(run: Run) -> Run:
    """The run without calls that are all padding: each is made in one with the call behind it."""
    if run.splits is None:
        return run
    lengths, waiting = list[int](), 0
    for (first, last), length in zip(run.bounds, run.splits, strict=True):
        waiting += length
        if run.decoder_valid[:, first:last].any():
            lengths.append(waiting)
            waiting = 0
    if waiting:  # padded right: the last calls are
        lengths[-1] += waiting
    return replace(run, splits=tuple(lengths))
