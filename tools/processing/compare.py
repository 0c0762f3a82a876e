"""Each thing that the processor does, by both sides: how often they are equal, and where first they are not."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from processing import folders, pictures, texts

from t5g2ref.processor.image import preprocess_all
from t5g2ref.processor.settings import read_pictures

BOI = "<start_of_image>"


@dataclass
class Tally:
    """Counts of one row of the table, and what differed first."""

    what: str
    equal: int = 0
    unequal: int = 0
    first: str = ""

    def count(self, name: str, ours: list[Any], theirs: list[Any]) -> None:
        """Both sides' arrays, compared by shape, type and every bit."""
        if (found := difference(ours, theirs)) is None:
            self.equal += 1
        else:
            self.unequal += 1
            self.first = self.first or f"{name}: {found}"


@dataclass
class Table:
    """Rows by name, in the order in which they came."""

    rows: dict[str, Tally] = field(default_factory=dict)

    def __getitem__(self, what: str) -> Tally:
        return self.rows.setdefault(what, Tally(what))


def difference(ours: list[Any], theirs: list[Any]) -> str | None:
    """What differs first, or None."""
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} parts"
    for part, (a, b) in enumerate(zip(map(np.asarray, ours), map(np.asarray, theirs), strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"part {part} is {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        if a.tobytes() != b.tobytes():
            at = tuple(int(axis[0]) for axis in np.nonzero(a != b))
            return f"part {part} at {at}: {a[at]} and {b[at]}"
    return None


def compare_pictures(table: Table, folder: Path, numbers: range, side: int = folders.SIDE) -> None:
    """Files, every second cut; then the same picture handed over by Pillow, as it lies."""
    peer = folders.theirs(folder).image_processor
    limits = {"min_crop_size": 256, "max_num_crops": 4, "min_ratio_to_activate": 1.2}
    fixed: dict[str, Any] = {f"pan_and_scan_{name}": value for name, value in limits.items()}
    fixed["size"] = {"height": side, "width": side}
    for seed in numbers:
        kind, path = pictures.write(folder, seed)
        cut = seed // len(pictures.KINDS) % 2 == 1
        for route, source, other in (
            ("file", path, pictures.by_bytes(path)),
            ("Pillow image", *[pictures.picture(seed)[1]] * 2),
        ):
            found = peer([other], do_pan_and_scan=cut, **fixed)
            pixels, crops = preprocess_all([source], side, cut)
            row = table[f"{route}, {kind}"]
            row.count(path.name, [pixels, crops], [np.stack(found["pixel_values"]), found["num_crops"]])
        path.unlink()


def compare_settings(table: Table, folder: Path, numbers: range) -> None:
    """Files under settings that were never released. transformers' image processor is asked by itself."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    before = (folder / "preprocessor_config.json").read_text()
    for seed in numbers:
        (folder / "preprocessor_config.json").write_text(json.dumps(folders.other_settings(seed)))
        _, path = pictures.write(folder, seed)
        found = Gemma3ImageProcessorPil.from_pretrained(folder, local_files_only=True)([pictures.by_bytes(path)])
        rule, side, _ = read_pictures(folder)
        pixels, crops = preprocess_all([path], side or 0, rule=rule)
        theirs = [np.stack(found["pixel_values"]), found["num_crops"]]
        table["other preprocessor_config.json"].count(f"settings {seed}", [pixels, crops], theirs)
        path.unlink()
    (folder / "preprocessor_config.json").write_text(before)


def compare_texts(table: Table, folder: Path, numbers: range, label: str) -> None:
    """Ids of each text, what they decode to, and rows of eight that are padded."""
    mine, peer = folders.ours(folder), folders.theirs(folder)
    assert mine.tokenizer is not None
    for seed in numbers:
        kind, text = texts.text(seed)
        ids = mine([text]).ids[0]
        theirs = np.array(peer(text=text)["input_ids"][0])
        table[f"{label}, {kind}"].count(f"text {seed}", [ids], [theirs])
        back = [mine.tokenizer.decode(ids, skip_special=skip) for skip in (True, False)]
        other = [peer.tokenizer.decode(theirs, skip_special_tokens=skip) for skip in (True, False)]
        table[f"{label}, back to text"].count(f"text {seed}", [back], [other])
    for start in numbers[::8]:
        rows = [texts.text(seed)[1] for seed in range(start, start + 8)]
        given, found = mine(rows), peer(text=rows, padding=True)
        theirs = [np.array(found[name]) for name in ("input_ids", "attention_mask")]
        table[f"{label}, padded rows"].count(f"texts from {start}", [given.ids, given.mask], theirs)


def compare_tokens(table: Table, folder: Path, numbers: range, size: int) -> None:
    """Ids and masks under tokenizer_config.json files that were never released."""
    path = folder / "tokenizer_config.json"
    before = path.read_text()
    for seed in numbers:
        more = folders.other_tokens(seed, size)
        raw = json.loads(before)
        known = raw["added_tokens_decoder"] | more.pop("added_tokens_decoder")
        path.write_text(json.dumps(raw | more | {"added_tokens_decoder": known}))
        rng = random.Random(f"rows {seed}")
        last = [token["content"] for token in known.values()][-5:]
        words = [*last, "<unused1>", "<bos>", " ", "\n", "a"]
        rows = ["".join(rng.choice([*words, texts.mixed(rng)[:9]]) for _ in range(rng.randint(1, 20))) for _ in "1234"]
        given, found = folders.ours(folder)(rows), folders.theirs(folder)(text=rows, padding=True)
        theirs = [np.array(found[name]) for name in ("input_ids", "attention_mask")]
        table["other tokenizer_config.json"].count(f"tokens {seed}", [given.ids, given.mask], theirs)
    path.write_text(before)


def prompts(folder: Path, seed: int) -> tuple[list[str], list[list[Any]]]:
    """Rows with zero to three pictures each, at least one in all."""
    from transformers.image_utils import load_image

    rng = random.Random(f"prompts {seed}")
    counts = [rng.randint(0, 3) for _ in range(rng.randint(1, 4))]
    counts[rng.randrange(len(counts))] = rng.randint(1, 3)
    numbers = iter(range(7 * seed, 10**9))
    own = [
        [load_image(pictures.by_bytes(pictures.write(folder, next(numbers))[1])) for _ in range(count)]
        for count in counts
    ]
    words = [[texts.text(rng.randrange(10**6))[1][:200] for _ in range(count + 1)] for count in counts]
    return [BOI.join(row) or "x" for row in words], own


def compare_prompts(table: Table, folder: Path, numbers: range) -> None:
    """Rows with unlike numbers of pictures, through both whole processors."""
    mine, peer = folders.ours(folder), folders.theirs(folder)
    for seed in numbers:
        rows, own = prompts(folder, seed)
        cut = seed % 2 == 1
        given = mine(rows, own, pan_and_scan=cut)
        found = peer(text=rows, images=own, padding=True, do_pan_and_scan=cut)
        theirs = [np.array(found["input_ids"]), np.array(found["attention_mask"]), np.stack(found["pixel_values"])]
        table["prompts in rows, unlike numbers of pictures"].count(
            f"prompts {seed}", [given.ids, given.mask, given.pixels], theirs
        )


def quietly(function: Callable[[], None]) -> None:
    """Run it without what both sides warn of: clipped grey, long rows."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function()


def lines(table: Table) -> Iterator[str]:
    """The table as text."""
    wide = max(len(row.what) for row in table.rows.values())
    yield f"{'compared':<{wide}}  equal  unequal"
    for row in table.rows.values():
        yield f"{row.what:<{wide}}  {row.equal:5}  {row.unequal:7}  {row.first}".rstrip()
