"""`python -m t5g2ref generate`: every option reaches what it names, and what it says where it cannot."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import python

import t5g2ref
from t5g2ref import command_line as command
from t5g2ref.commands.answers import Stream
from t5g2ref.generate.beam import beam_search
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.hypotheses import Search
from t5g2ref.generate.rules import Rules, Sampling
from t5g2ref.generate.sample import sample
from t5g2ref.model import T5Gemma2
from t5g2ref.processor.image import preprocess_all

SOURCE, WIDE = "5,17,42", ("--dtype", "float64")
IDS = [[5, 17, 42]]
SPECIAL = {"<pad>": 31, "<bos>": 33, "<eos>": 37, "<start_of_image>": 298, "<end_of_image>": 301}
SPECIAL |= {"<image_soft_token>": 307, "<unk>": 0, "▁": 40}


@pytest.fixture(scope="module")
def model() -> T5Gemma2:
    return t5g2ref.load(t5g2ref.bundled("tiny"))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = command.main(["generate", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    """The ids that the command prints for tiny and the three ids."""
    status, out, err = call(capsys, "tiny", "--ids", SOURCE, *WIDE, *arguments)
    assert (status, err) == (0, "")
    assert out.endswith("\n")
    return [int(i) for i in out.split()]


# A tokenizer for tiny: each id but the special ones is one Chinese character


def char(token: int) -> str:
    return chr(0x4E00 + token)


def text(ids: Any) -> str:
    """What the tokenizer makes of ids."""
    return "".join(" " if i == 40 else char(int(i)) for i in ids if i == 40 or i not in SPECIAL.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny with a tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers library")
    place = tmp_path_factory.mktemp("tiny") / "tiny"
    shutil.copytree(t5g2ref.bundled("tiny"), place)
    vocab = {char(i): i for i in range(311) if i not in SPECIAL.values()} | SPECIAL
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse()]
    )
    tokenizer.add_special_tokens([name for name in SPECIAL if name != "▁"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", pair=None, special_tokens=[("<bos>", 33)]
    )
    tokenizer.save(str(place / "tokenizer.json"))
    return place


# How ids are chosen


def test_greedy(capsys: pytest.CaptureFixture[str], model: T5Gemma2) -> None:
    assert printed(capsys, "--max-new-tokens", "9") == greedy(model, IDS, max_new_tokens=9).ids[0, 1:].tolist()


@pytest.mark.parametrize(
    ("arguments", "sampling"),
    [
        ((), Sampling()),
        (("--temperature", "0.7", "--top-k", "20"), Sampling(0.7, 20)),
        (("--top-p", "0.5", "--min-p", "0.1"), Sampling(1.0, 0, 0.5, 0.1)),
    ],
)
def test_sampling(arguments: tuple[str, ...], sampling: Sampling, capsys: Any, model: T5Gemma2) -> None:
    for seed in (0, 7):
        expected = sample(model, IDS, sampling, seed=seed, max_new_tokens=9, stop=()).ids[0, 1:].tolist()
        given = ("--sample", "--seed", str(seed), "--max-new-tokens", "9", "--stop-ids", "", *arguments)
        assert printed(capsys, *given) == expected
        assert seed or printed(capsys, *[a for a in given if a not in ("--seed", "0")]) == expected


@pytest.mark.parametrize(
    ("arguments", "search"),
    [
        (("--beams", "3"), Search(3)),
        (("--beams", "4", "--length-penalty", "-1", "--early-stopping", "yes"), Search(4, -1.0, True)),
        (("--beams", "2", "--early-stopping", "never"), Search(2, 1.0, "never")),
    ],
)
def test_beams(arguments: tuple[str, ...], search: Search, capsys: Any, model: T5Gemma2) -> None:
    expected = beam_search(model, IDS, search, max_new_tokens=9, stop=(84, 70))
    given = (*arguments, "--max-new-tokens", "9", "--stop-ids", "84,70")
    assert printed(capsys, *given) == expected.ids[0, 1 : 1 + expected.lengths[0]].tolist()
    status, out, _ = call(capsys, "tiny", "--ids", SOURCE, *WIDE, *given, "--json")
    answers = json.loads(out)["answers"]
    assert status == 0
    assert [a["ids"] for a in answers] == [
        ids[1 : 1 + n].tolist() for ids, n in zip(expected.ids, expected.lengths, strict=True)
    ]
    assert [a["score"] for a in answers] == expected.scores.tolist()


def test_rules_and_ends(capsys: pytest.CaptureFixture[str], model: T5Gemma2) -> None:
    rules = Rules(1.5, 2, ((84,), (70, 171)))
    expected = greedy(model, IDS, max_new_tokens=9, min_new_tokens=5, stop=(66, 171), rules=rules)
    free = greedy(model, IDS, max_new_tokens=9).ids
    given = ("--repetition-penalty", "1.5", "--no-repeat-ngram", "2", "--bad-word", "84", "--bad-word", "70,171")
    found = printed(capsys, *given, "--min-new-tokens", "5", "--max-new-tokens", "9", "--stop-ids", "66,171")
    assert found == expected.ids[0, 1:].tolist() != free[0, 1:].tolist()


# Text


def test_text_comes_as_it_is_made(folder: Path, capsys: pytest.CaptureFixture[str], model: T5Gemma2) -> None:
    given = (str(folder), "--prompt", text([5, 17, 42]), *WIDE, "--max-new-tokens", "9", "--stop-ids", "")
    expected = text(greedy(model, [[33, 5, 17, 42]], max_new_tokens=9, stop=()).ids[0, 1:])
    assert call(capsys, *given) == (0, f"{expected}\n", "")
    status, out, _ = call(capsys, *given, "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["prompt"], found["answers"][0]["text"]) == (text([5, 17, 42]), expected)
    assert len(found["answers"][0]["log_probs"]) == 9


def test_a_character_is_shown_when_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Three ids are the bytes of one character, as with a tokenizer that falls back to bytes."""
    parts = {1: b"a", 2: b"\xe4", 3: b"\xb8", 4: b"\x80"}

    class Bytes:
        def decode(self, ids: list[int]) -> str:
            return b"".join(parts[i] for i in ids).decode(errors="replace")

    stream, shown = Stream(Bytes()), []
    for token in (1, 2, 3, 4, 1, 2):
        stream.take(token)
        shown.append(capsys.readouterr().out)
    stream.end()
    assert shown == ["a", "", "", "一", "a", ""]
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}\n"


def test_stop_and_bad_words_in_text(folder: Path, capsys: pytest.CaptureFixture[str], model: T5Gemma2) -> None:
    source = [[33, 5, 17, 42]]
    free = greedy(model, source, max_new_tokens=9, stop=()).ids[0, 1:]
    stop = text(free[2:4])
    given = (str(folder), "--prompt", text([5, 17, 42]), *WIDE, "--max-new-tokens", "9", "--stop-ids", "")
    _, out, _ = call(capsys, *given, "--stop", stop, "--stop", "none of it")
    first = next(n for n in range(1, 10) if stop in text(free[:n]))
    assert out == text(free[:first]) + "\n"
    word = text(free[:2])
    rules = Rules(bad_words=(tuple(free[:2].tolist()), (40, *free[:2].tolist())))
    _, out, _ = call(capsys, *given, "--bad-word", word)
    assert out == text(greedy(model, source, max_new_tokens=9, stop=(), rules=rules).ids[0, 1:]) + "\n"
    assert word not in out


def picture(path: Path, shade: int) -> Path:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    image.new("RGB", (40, 30), (shade, 90, 255 - shade)).save(path)
    return path


def test_a_batch_of_unlike_lengths_with_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: T5Gemma2
) -> None:
    """Pictures go to the placeholders in their order; each line is answered as by itself."""
    pictures = [picture(tmp_path / f"{n}.png", 60 * n) for n in range(3)]
    prompts = [
        f"{text([50])}<start_of_image>{text([5, 6])}<start_of_image>",
        text([70]),
        f"<start_of_image>{text([9])}",
    ]
    own = [pictures[:2], [], pictures[2:]]
    batch = tmp_path / "prompts.txt"
    batch.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    given = (*WIDE, "--max-new-tokens", "7", "--stop-ids", "")
    images = [part for path in pictures for part in ("--image", str(path))]
    status, out, _ = call(capsys, str(folder), "--batch", str(batch), *images, *given, "--json")
    assert status == 0
    together = [json.loads(line) for line in out.splitlines()]
    assert [one["prompt"] for one in together] == prompts
    for prompt, paths, one in zip(prompts, own, together, strict=True):
        few = [part for path in paths for part in ("--image", str(path))]
        _, alone, _ = call(capsys, str(folder), "--prompt", prompt, *few, *given, "--json")
        assert json.loads(alone)["answers"][0]["ids"] == one["answers"][0]["ids"]
    side = model.config.vision.image_size
    pixels, _ = preprocess_all([str(pictures[2])], side)
    block = [298, *[307] * model.config.mm_tokens_per_image, 301]
    source = [33, 0, *block, 0, 9]  # newlines are unknown to this tokenizer
    expected = greedy(model, [source], pixel_values=pixels, max_new_tokens=7, stop=()).ids[0, 1:].tolist()
    assert together[2]["answers"][0]["ids"] == expected
    _, out, _ = call(capsys, str(folder), "--batch", str(batch), *images, *given)
    assert out.splitlines() == [one["answers"][0]["text"] for one in together]


def test_a_batch_of_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: T5Gemma2) -> None:
    """Rows end apart: what stands behind an end is not printed."""
    rows = [[5, 17, 42], [33, 236, 122], [9]]
    batch = tmp_path / "ids.txt"
    batch.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    status, out, err = call(capsys, "tiny", "--batch", str(batch), *WIDE, "--max-new-tokens", "8", "--beams", "2")
    assert (status, err) == (0, "")
    for row, line in zip(rows, out.splitlines(), strict=True):
        alone = beam_search(model, [row], Search(2), max_new_tokens=8)
        assert [int(i) for i in line.split()] == alone.ids[0, 1 : 1 + alone.lengths[0]].tolist()
    _, out, _ = call(capsys, "tiny", "--batch", str(batch), *WIDE, "--max-new-tokens", "8")
    lengths = [len(line.split()) for line in out.splitlines()]
    assert lengths[1] == 2, "its second id is eos"
    assert max(lengths) > 2


def test_a_terminal_sees_how_far_a_batch_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is printed stays the same."""
    (tmp_path / "ids.txt").write_text("5,17\n9\n")
    asked = ("tiny", "--batch", str(tmp_path / "ids.txt"), *WIDE, "--max-new-tokens", "3", "--stop-ids", "")
    _, plain, silent = call(capsys, *asked)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, out, err = call(capsys, *asked)
    assert (out, silent) == (plain, "")
    assert [f"id {n} of at most 3 in each row" in err for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert err.endswith("\r\x1b[K")


def test_a_batch_has_a_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it is one batch: a file of a hundred thousand lines would take all memory, and say nothing meanwhile."""
    (tmp_path / "ids.txt").write_text("5\n" * 1025)
    status, out, err = call(capsys, "tiny", "--batch", str(tmp_path / "ids.txt"), *WIDE)
    assert (status, out) == (2, "")
    assert err.endswith("has 1025 prompts, expected 1024 at most; give it in parts\n")


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "2"], "--temperature: works with --sample alone; add --sample"),
        (["--top-k", "2"], "--top-k: works with --sample alone; add --sample"),
        (["--top-p", "0.5"], "--top-p: works with --sample alone; add --sample"),
        (["--min-p", "0.5"], "--min-p: works with --sample alone; add --sample"),
        (["--seed", "2"], "--seed: works with --sample alone; add --sample"),
        (["--length-penalty", "2"], "--length-penalty: works with --beams alone; add --beams"),
        (["--early-stopping", "yes"], "--early-stopping: works with --beams alone; add --beams"),
        (["--sample", "--beams", "2"], "give one of --sample and --beams N"),
        (["--sample", "--seed", "-1"], "--seed: expected an integer of at least 0, found -1"),
        (
            ["--sample", "--temperature", "0"],
            "temperature: expected a number from 0.0001 to 10000 (for the likeliest id use greedy)",
        ),
        (["--sample", "--top-p", "1.5"], "top_p: expected a number above 0, at most 1, found 1.5"),
        (["--beams", "1"], "beams: expected an integer of at least 2 (for one use greedy), found 1"),
        (
            ["--stop", "x"],
            "--stop: a text needs a tokenizer.json, and there is none, or ids were given; give --stop-ids",
        ),
        (["--stop-ids", "x"], "--stop-ids: expected integers between commas, found 'x'"),
        (["--stop-ids", "999"], "stop: ids must lie in [0, 311), found 999, which no row would ever have"),
        (["--bad-word", "x"], "--bad-word: expected integers between commas, found 'x'"),
        (["--bad-word", "999"], "bad_words: ids must lie in [0, 311), found 999"),
        (["--no-repeat-ngram", "-1"], "no_repeat_ngram: expected an integer of at least 0, found -1"),
        (["--repetition-penalty", "0"], "repetition_penalty: expected a number from 0.0001 to 10000, found 0.0"),
        (["--min-new-tokens", "65"], "min_new_tokens: expected an integer from 0 to max_new_tokens (64), found 65"),
        (["--batch", "x"], "give one of --prompt TEXT, --ids 5,17,42 and --batch FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "tiny", "--ids", SOURCE, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"t5g2ref: {message}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "--batch: expected a prompt in every line of {}, found none in line 1"),
        (b"5,6\n\n7\n", "--batch: expected a prompt in every line of {}, found none in line 2"),
        (b"5,6\nx\n", "{}: each line: expected integers between commas, found 'x'"),
        (b"\xff\n", "--batch: {} is no UTF-8: "),
        (None, "{}: No such file or directory"),
    ],
)
def test_files_of_prompts_that_are_refused(data: Any, message: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "prompts.txt"
    if data is not None:
        path.write_bytes(data)
    status, out, err = call(capsys, "tiny", "--batch", str(path))
    assert (status, out) == (2, "")
    assert err.startswith("t5g2ref: " + message.format(path))
    assert len(err.splitlines()) == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of its examples can be typed, but for the folder; every option is there, with what it does."""
    with pytest.raises(SystemExit) as left:
        command.main(["generate", "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    examples = [shlex.split(line)[4:] for line in out.splitlines() if line.startswith("  python -m t5g2ref generate")]
    assert len(examples) == 4
    for given in examples[:3]:
        assert call(capsys, *given, "--max-new-tokens", "3")[0] == 0
    known = command.parser().parse_args(["generate", *examples[3]])
    assert (known.beams, known.stop, known.json) == (4, ["END"], True)


def test_as_a_process() -> None:
    """The same in another process, with the seed alone in common."""
    given = ("generate", "tiny", "--ids", SOURCE, "--sample", "--seed", "3", "--max-new-tokens", "6", "--json")
    first, second = (python("-m", "t5g2ref", *given) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == second.stdout
    answer = json.loads(first.stdout)["answers"][0]
    assert set(answer) == {"ids", "log_probs"}
    assert np.isfinite(answer["log_probs"]).all()
