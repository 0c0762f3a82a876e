"""A sample of tools/processor_equality.py: pixels bit for bit, ids, masks and texts as transformers has them."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from processes import ROOT

pytest.importorskip("tokenizers", reason="needs the tokenizers library")
pytest.importorskip("PIL", reason="needs Pillow")
sys.path.append(str(ROOT / "tools"))

from processing import big_tokenizer, compare, folders, pictures, texts

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = 1000  # numbers that the tool does not take by default


@pytest.fixture(scope="module")
def place(peer_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(
        "transformers.models.gemma3.image_processing_pil_gemma3", reason="this release has no Pillow processor"
    )
    if tuple(map(int, version("transformers").split(".")[:2])) < (5, 21):
        pytest.skip("before 5.21 what is see-through was dropped, not white")
    return folders.make(tmp_path_factory.mktemp("equality"), big_tokenizer.SMALL)


def assert_equal(compared: Callable[[compare.Table], None], count: int) -> None:
    table = compare.Table()
    compare.quietly(lambda: compared(table))
    assert [row.first for row in table.rows.values() if row.unequal] == []
    assert sum(row.equal for row in table.rows.values()) == count


def test_pictures(place: Path) -> None:
    """Each kind twice, once cut; as a file and from Pillow."""
    seeds = range(SEEDS, SEEDS + 2 * len(pictures.KINDS))
    assert_equal(lambda table: compare.compare_pictures(table, place, seeds), 2 * len(seeds))


def test_settings(place: Path) -> None:
    assert_equal(lambda table: compare.compare_settings(table, place, range(SEEDS, SEEDS + 12)), 12)


def test_tokens(place: Path) -> None:
    """Further tokens with any flags, padding on either side, either class."""
    assert_equal(lambda table: compare.compare_tokens(table, place, range(SEEDS, SEEDS + 8), big_tokenizer.SMALL), 8)


def test_rows(place: Path) -> None:
    assert_equal(lambda table: compare.compare_prompts(table, place, range(SEEDS, SEEDS + 6)), 6)


def test_texts(place: Path) -> None:
    """Each kind twice: ids, what they say, and rows of eight."""
    seeds = range(SEEDS, SEEDS + 2 * len(texts.KINDS))
    rows = len(seeds[::8])
    assert_equal(lambda table: compare.compare_texts(table, place, seeds, "small"), 2 * len(seeds) + rows)


def test_a_difference_is_told() -> None:
    """The judge of this file is no yes-man."""
    row = compare.Tally("x")
    row.count("one", [[1, 2], [3.0]], [[1, 2], [3.0]])
    row.count("two", [[1, 2]], [[1, 3]])
    row.count("three", [[1]], [[1.0]])
    row.count("four", [[1]], [])
    assert (row.equal, row.unequal, row.first) == (1, 3, "two: part 0 at (1,): 2 and 3")


def test_the_large_tokenizer_is_one_of_gemmas_size() -> None:
    pieces = big_tokenizer.pieces(0, big_tokenizer.SIZE)
    assert len(pieces) == len(set(pieces)) == 262_144
    assert len(big_tokenizer.pieces(0, big_tokenizer.SMALL)) == big_tokenizer.SMALL
    assert pieces[:4] == ["<pad>", "<eos>", "<bos>", "<unk>"]
    assert pieces[255_999:256_002] == ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
