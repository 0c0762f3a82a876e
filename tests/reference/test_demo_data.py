"""tools/demo: the words of its tasks, the split, and the tokenizer. Expected words are written by hand."""

from __future__ import annotations

import json
import re
import sys
from datetime import date
from pathlib import Path
from random import Random

import numpy as np
import pytest
from processes import ROOT

from t5g2ref.processor.text import Tokenizer, expand_images

sys.path.append(str(ROOT / "tools" / "demo"))

import data
import pictures
import tokenizer
import words

NUMBERS = {
    "english": {
        0: "zero", 13: "thirteen", 40: "forty", 99: "ninety-nine", 100: "one hundred", 345: "three hundred forty-five",
    },
    "german": {
        1: "eins", 16: "sechzehn", 17: "siebzehn", 21: "einundzwanzig", 30: "dreißig", 66: "sechsundsechzig",
        77: "siebenundsiebzig", 100: "einhundert", 101: "einhunderteins", 112: "einhundertzwölf",
        621: "sechshunderteinundzwanzig",
    },
    "french": {
        17: "dix-sept", 21: "vingt et un", 70: "soixante-dix", 71: "soixante et onze", 72: "soixante-douze",
        79: "soixante-dix-neuf", 80: "quatre-vingts", 81: "quatre-vingt-un", 91: "quatre-vingt-onze",
        99: "quatre-vingt-dix-neuf", 100: "cent", 180: "cent quatre-vingts", 200: "deux cents", 201: "deux cent un",
        571: "cinq cent soixante et onze",
    },
    "spanish": {
        16: "dieciséis", 22: "veintidós", 26: "veintiséis", 31: "treinta y uno", 40: "cuarenta", 100: "cien",
        101: "ciento uno", 115: "ciento quince", 500: "quinientos", 777: "setecientos setenta y siete",
        999: "novecientos noventa y nueve",
    },
    "italian": {
        3: "tre", 17: "diciassette", 21: "ventuno", 23: "ventitré", 28: "ventotto", 33: "trentatré", 40: "quaranta",
        81: "ottantuno", 88: "ottantotto", 101: "centouno", 103: "centotré", 108: "centotto", 180: "centottanta",
        253: "duecentocinquantatré", 918: "novecentodiciotto",
    },
}  # fmt: skip


@pytest.mark.parametrize("language", NUMBERS)
def test_numbers_are_spelled_as_the_language_spells_them(language: str) -> None:
    assert {n: words.LANGUAGES[language](n) for n in NUMBERS[language]} == NUMBERS[language]


@pytest.mark.parametrize("language", words.LANGUAGES)
def test_no_two_numbers_are_spelled_alike(language: str) -> None:
    assert len({words.LANGUAGES[language](n) for n in range(data.LARGEST_NUMBER + 1)}) == data.LARGEST_NUMBER + 1


@pytest.mark.parametrize(
    ("day", "said"),
    [
        (date(2024, 3, 17), "the seventeenth of march two thousand twenty-four"),
        (date(1900, 1, 1), "the first of january nineteen hundred"),
        (date(1905, 12, 31), "the thirty-first of december nineteen oh five"),
        (date(1999, 8, 22), "the twenty-second of august nineteen ninety-nine"),
        (date(2000, 2, 29), "the twenty-ninth of february two thousand"),
        (date(2009, 5, 30), "the thirtieth of may two thousand nine"),
    ],
)
def test_dates_are_spelled_as_one_says_them(day: date, said: str) -> None:
    assert words.spoken(day) == said


@pytest.mark.parametrize("task", data.TEXT_TASKS)
def test_no_held_out_input_is_trained_on(task: str) -> None:
    trained = data.examples(task, False, 1, 4000)
    held = data.examples(task, True, 1, 400)
    assert len(held) == 400
    assert not {one.text for one in trained} & {one.text for one in held}
    assert not {one.fact for one in trained} & {one.fact for one in held}


def test_the_order_of_terms_and_the_language_change_no_side() -> None:
    assert {one.fact for one in data.sums() if set(one.text.split()) == {"add", "and", "ninety", "eleven"}} == {
        "sum 11 90"
    }
    assert {one.fact for one in data.numbers() if "dreihundertsechs" in one.text.split()} == {"number 306"}
    assert data.number_sentence(306, "french", "italian").fact == "number 306"
    assert data.sum_sentence(90, 11).fact == data.sum_sentence(11, 90).fact == "sum 11 90"


def test_about_a_tenth_is_held_out() -> None:
    facts = {one.fact for one in (*data.sums(), *data.numbers())}
    assert 0.08 < sum(map(data.held_out, facts)) / len(facts) < 0.12
    assert not data.held_out("")


def restored(one: data.Example) -> str:
    """The sentence of a denoising example, put together from text and answer."""
    hidden = dict(re.findall(r"(<mask\d>) ([^<]+?)(?= <|$)", one.answer))
    return re.sub(r"<mask\d>", lambda mask: hidden[mask[0]], one.text.partition(" ")[2])


@pytest.mark.parametrize("mode", data.MODES)
def test_denoising_hides_what_the_answer_gives(mode: str) -> None:
    rng = Random(3)
    sentence = data.date_sentence(date(1987, 6, 5))
    found = [data.denoised(sentence, mode, rng) for _ in range(50)]
    assert {restored(one) for one in found} == {" ".join(sentence.words)}
    assert all(one.text.startswith(f"{mode} ") and "<mask0>" in one.text for one in found)
    assert len({one.text for one in found}) > 3


@pytest.mark.parametrize("mode", data.MODES)
def test_what_is_hidden_follows_from_the_rest(mode: str) -> None:
    rng = Random(4)
    for _ in range(50):
        one = data.denoised(data.sum_sentence(40, 7), mode, rng)
        hidden = [number for number in ("forty", "seven", "forty-seven") if number in one.answer.split()]
        assert len(hidden) == 1


def test_the_tokenizer_is_read_as_it_was_written(tmp_path: Path) -> None:
    tokenizer.write(tmp_path, 32, 4)
    read = Tokenizer.from_folder(tmp_path)
    for task in data.TEXT_TASKS:
        for one in data.examples(task, True, 1, 100):
            for text in (one.text, one.answer):
                ids = read.encode(text)
                assert ids[0] == tokenizer.BOS
                assert tokenizer.UNK not in ids
                assert read.decode(ids) == text
    prompt = expand_images(data.ADD, [0, 0], tokens_per_image=4)
    assert data.expanded(data.ADD, 4) == prompt
    assert read.encode(prompt).count(tokenizer.IMAGE) == 8


def test_special_tokens_are_where_the_config_says(tmp_path: Path) -> None:
    tokenizer.write(tmp_path, 32, 4)
    added = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert [token["content"] for token in added] == [*tokenizer.SPECIAL, *tokenizer.PLAIN]
    assert [token["content"] for token in added if token["special"]] == list(tokenizer.SPECIAL)
    assert tokenizer.trained().get_vocab_size() == tokenizer.VOCABULARY


def test_digits_are_never_merged() -> None:
    assert tokenizer.trained().encode("2024-03-17").tokens == ["<bos>", *"2024-03-17"]


def test_equal_pictures_lie_on_one_side() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (200, 8, 8)).astype(np.uint8)
    digits = pictures.Digits(np.concatenate([pixels, pixels]), np.arange(400))
    trained, held = pictures.split(digits)
    assert len(trained.labels) + len(held.labels) == 400
    assert 40 < len(held.labels) < 140
    assert not {one.tobytes() for one in trained.pixels} & {one.tobytes() for one in held.pixels}
