"""Prompt expansion and the tokenizer wrapper: literals, properties, and transformers' Gemma3Processor."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5g2ref.processor.text import Tokenizer, expand_images

BOI, IMAGE, EOI = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", BOI, EOI, IMAGE]
WORDS = ["▁", "a", "b", "c", "\n", "\n\n", "▁a", "ab", "Here", "is"]


# Expansion


def test_expand_literal() -> None:
    # From transformers' Gemma3Processor.full_image_sequence: newlines, boi, image tokens, eoi, newlines.
    assert (
        expand_images("a <start_of_image> b", [0], tokens_per_image=2)
        == "a \n\n<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\n b"
    )


def test_expand_with_crops_literal() -> None:
    # From Gemma3Processor.replace_image_token: a space on each side of every run, but not after the last.
    run = "\n\n[i]\n\n"
    assert expand_images("x[y", [2], boi="[", image="i", eoi="]", tokens_per_image=1) == (
        f"xHere is the original image {run} and here are some crops to help you see better {run} {run}y"
    )


def test_expand_defaults_and_order() -> None:
    out = expand_images(f"{BOI}{BOI} and {BOI}", [0, 1, 0])
    assert out.count(IMAGE) == 4 * 256
    assert out.startswith(f"\n\n{BOI}{IMAGE}")
    assert out.index("Here is") == len(f"\n\n{BOI}{IMAGE * 256}{EOI}\n\n")
    assert expand_images("no image", []) == "no image"
    assert expand_images("", []) == ""


@given(
    st.lists(st.text(st.sampled_from("a\n <>"), max_size=5), min_size=1, max_size=5),
    st.integers(1, 4),
    st.data(),
)
def test_expansion_keeps_the_text_and_counts_the_tokens(texts: list[str], tokens: int, data: Any) -> None:
    images = len(texts) - 1
    crops = data.draw(st.lists(st.integers(0, 3), min_size=images, max_size=images))
    out = expand_images("[".join(texts), crops, boi="[", image="i#", eoi="]", tokens_per_image=tokens)
    runs = sum(1 + count for count in crops)
    assert out.count("[") == out.count("]") == out.count("[" + "i#" * tokens + "]") == runs
    assert out.startswith(texts[0])
    assert out.endswith(texts[-1])


@pytest.mark.parametrize(
    ("prompt", "crops", "message"),
    [
        ("no image", [0], "the prompt has 0 × '<start_of_image>' for 1 images"),
        (f"{BOI} {BOI}", [0], "has 2 × '<start_of_image>' for 1 images"),
        (BOI, [], "has 1 × '<start_of_image>' for 0 images"),
        (f"{BOI} {IMAGE}", [0], "holds '<image_soft_token>' already"),
        (BOI, [-1], r"crops >= 0.*found \[-1\]"),
    ],
)
def test_expand_errors(prompt: str, crops: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_images(prompt, crops)


def test_expand_twice_and_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="already: pass it unexpanded"):
        expand_images(expand_images(BOI, [0]), [0])
    with pytest.raises(ValueError, match="tokens_per_image >= 1"):
        expand_images(BOI, [0], tokens_per_image=0)


# Tokenizer


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small tokenizer.json of Gemma's make, and a config if given: the folder."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers library")

    def write(*, template: bool = True, limits: bool = False, config: Any = None) -> Path:
        vocab = {token: index for index, token in enumerate(SPECIAL + WORDS)}
        merges = [("\n", "\n"), ("▁", "a"), ("a", "b")]
        vocab = {**vocab, "Here": len(vocab) + 1}  # a gap: its old id names no token
        model = tokenizers.models.BPE(vocab=vocab, merges=merges, fuse_unk=True, unk_token="<unk>")
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
        tokenizer.decoder = tokenizers.decoders.Sequence(
            [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse()]
        )
        tokenizer.add_special_tokens(SPECIAL)
        if limits:
            tokenizer.enable_truncation(3)
            tokenizer.enable_padding(length=9)
        if template:
            bos = ("<bos>", SPECIAL.index("<bos>"))
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single="<bos> $A", pair=None, special_tokens=[bos]
            )
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def ids_of(*tokens: str) -> list[int]:
    return [(SPECIAL + WORDS).index(token) for token in tokens]


def test_encode_literals(save: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_folder(save(limits=True))
    assert tokenizer.encode("ab a") == ids_of("<bos>", "ab", "▁a")
    assert tokenizer.encode("ab a", add_bos=False) == ids_of("ab", "▁a")
    assert tokenizer.encode("ab a", add_bos=True) == ids_of("<bos>", "ab", "▁a")
    assert tokenizer.encode("<bos>a") == ids_of("<bos>", "<bos>", "a")  # not looked for, as by the processor
    assert tokenizer.encode("") == ids_of("<bos>")
    assert tokenizer.encode("a" * 40, add_bos=False) == ids_of("a") * 40  # neither truncated nor padded


def test_an_expanded_prompt_becomes_special_ids(save: Callable[..., Path]) -> None:
    prompt = expand_images(f"{BOI}a", [0], tokens_per_image=3)
    expected = ids_of("<bos>", "\n\n", BOI, IMAGE, IMAGE, IMAGE, EOI, "\n\n", "a")
    assert Tokenizer.from_folder(save()).encode(prompt) == expected


@pytest.mark.parametrize("template", [True, False])
def test_the_caller_overrules_the_template(save: Callable[..., Path], template: bool) -> None:
    tokenizer = Tokenizer.from_folder(save(template=template))
    assert tokenizer.encode("a") == (ids_of("<bos>", "a") if template else ids_of("a"))
    assert tokenizer.encode("a", add_bos=True) == ids_of("<bos>", "a")
    assert tokenizer.encode("a", add_bos=False) == ids_of("a")
    assert replace(tokenizer, bos="<unk>").encode("a", add_bos=True) == ids_of("<unk>", "a")


def test_decode(save: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_folder(save())
    ids = np.array(ids_of("<bos>", "ab", "▁a", "<eos>"))
    assert tokenizer.decode(ids) == "ab a"
    assert tokenizer.decode(ids, skip_special=False) == "<bos>ab a<eos>"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([*ids_of("a", "Here"), 10**6]) == "a"
    with pytest.raises(ValueError, match="found -100: drop ignored labels"):
        tokenizer.decode([4, -100])


@pytest.mark.parametrize("text", ["", "a", "ab  ba", "a\n\n\nb", " c "])
def test_round_trip(text: str, save: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_folder(save())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_id_of(save: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_folder(save())
    assert [tokenizer.id_of(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    with pytest.raises(ValueError, match="no token '<mask>'"):
        tokenizer.id_of("<mask>")


def test_bad_folders(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    size = (save() / "tokenizer.json").stat().st_size
    Tokenizer.from_folder(tmp_path, max_bytes=size)
    with pytest.raises(ValueError, match=f"more than max_bytes={size - 1}"):
        Tokenizer.from_folder(tmp_path, max_bytes=size - 1)
    for data in (b"", b"{}", b"\xff\xfe", b'{"model": 1}'):
        (tmp_path / "tokenizer.json").write_bytes(data)
        with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
            Tokenizer.from_folder(tmp_path)


def spoiled(save: Callable[..., Path], part: str, value: Any) -> Path:
    """A folder whose tokenizer.json has another part."""
    folder = save()
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw[part] = value if part != "model" else raw["model"] | value
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
REGEX = {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False}
NO_GEMMA: list[tuple[str, Any, str]] = [
    ("pre_tokenizer", REGEX, "pre_tokenizer has the pattern {'Regex': '(a*)*b'}, expected a plain String"),
    ("normalizer", GROWING, "normalizer puts 'aa' for 'a', expected nothing longer"),
    ("normalizer", {"type": "Sequence", "normalizers": [GROWING] * 40}, "expected at most 8 steps"),
    ("normalizer", {"type": "Sequence", "normalizers": [GROWING]}, "normalizer puts 'aa' for 'a', expected nothing l"),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Sequence"}]}, "normalizer has 'Sequence', expected "),
    (
        "normalizer",
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        "has 'Precompiled', expected one of",
    ),
    ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": ""}, "expected a plain String"),
    ("normalizer", [], "normalizer is [], expected an object"),
    (
        "decoder",
        {"type": "Replace", "pattern": {"Regex": "a"}, "content": ""},
        "decoder has the pattern {'Regex':",
    ),
    ("post_processor", {"type": "RobertaProcessing"}, "has 'RobertaProcessing', expected one of TemplateProcessing"),
    ("model", {"type": "Unigram"}, "model.type is 'Unigram', expected 'BPE'"),
    ("post_processor", {"type": "x" * 70_000}, "post_processor has 70013 bytes, expected at most 65536"),
]


@pytest.mark.parametrize(("part", "value", "words"), NO_GEMMA, ids=range(len(NO_GEMMA)))
def test_what_no_gemma_tokenizer_has(save: Callable[..., Path], part: str, value: Any, words: str) -> None:
    """Each of these panics, aborts or never ends in the library, or could: none reaches it."""
    folder = spoiled(save, part, value)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer of Gemma's make: ") as error:
        Tokenizer.from_folder(folder)
    assert words in str(error.value)
    assert str(error.value).endswith("; give the tokenizer.json of a Gemma checkpoint")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 1_000_000, "it is nested or strewn beyond 100000 brackets and commas"),
        (b'{"model":[' + b"[]," * 1_000_000, "it is nested or strewn beyond 100000 brackets and commas"),
        (b'{"a":[' + b"[]," * 1_000_000, "model.type is None, expected 'BPE'"),
        (b'{"a":["' + b'\\"' * 1_000_000, "a string has no end"),
        (b'{"a":1,' + b'"b":1,' * 1_000_000, "the key 'b' is there twice, or is no tokenizer's"),
    ],
)
def test_a_bomb_is_not_unpacked(tmp_path: Path, data: bytes, words: str) -> None:
    pytest.importorskip("tokenizers", reason="needs the tokenizers library")
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ValueError, match="not a tokenizer of Gemma's make") as error:
        Tokenizer.from_folder(tmp_path)
    assert words in str(error.value)


@pytest.mark.parametrize("key", ["normalizer", "normal\\u0069zer"])
def test_a_part_that_is_there_twice(save: Callable[..., Path], key: str) -> None:
    file = save() / "tokenizer.json"
    file.write_text(f'{{"{key}": null, ' + file.read_text().strip()[1:])
    with pytest.raises(ValueError, match="the key 'normalizer' is there twice"):
        Tokenizer.from_folder(file.parent)


def test_a_panic_of_the_library_is_an_error(save: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    """A template that names a token which it does not give: a panic, a BaseException that is no Exception."""
    piece = {"SpecialToken": {"id": "x", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}}
    tokenizer = Tokenizer.from_folder(spoiled(save, "post_processor", template))
    with pytest.raises(ValueError, match=r"the tokenizers library failed: no entry found for key"):
        tokenizer.encode("ab")


def test_a_vocabulary_is_stepped_over(save: Callable[..., Path]) -> None:
    """Words that look like parts of the file are none."""
    folder = save()
    raw = json.loads((folder / "tokenizer.json").read_text())
    odd = ['"normalizer":', "{", "}", "[", ",", "model", 'a\\"', "type"]
    raw["model"]["vocab"] |= {word: 1000 + i for i, word in enumerate(odd)}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert Tokenizer.from_folder(folder).id_of("type") == 1007


def test_without_the_library_the_error_names_the_extra(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"t5g2ref\[text\]"):
        Tokenizer.from_folder(folder)


# Against transformers


def peer_processor(folder: Path, tokens: int) -> Any:
    pytest.importorskip("PIL", reason="the peer's image processor needs Pillow")
    from transformers import Gemma3Processor, GemmaTokenizer

    images_of = pytest.importorskip(
        "transformers.models.gemma3.image_processing_pil_gemma3", reason="this release has no Pillow processor"
    )

    extra = {"boi_token": BOI, "eoi_token": EOI, "image_token": IMAGE}
    tokenizer = GemmaTokenizer.from_pretrained(folder, extra_special_tokens=extra, local_files_only=True)
    images = images_of.Gemma3ImageProcessorPil(
        size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return Gemma3Processor(images, tokenizer, image_seq_length=tokens)


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("config", [None, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}])
def test_ids_of_prompts_with_images_equal_transformers(save: Callable[..., Path], template: bool, config: Any) -> None:
    folder = save(template=template, config=config)
    processor = peer_processor(folder, tokens=3)
    tokenizer = Tokenizer.from_folder(folder)
    for prompt, shapes, crops in [
        (f"{BOI} in a b", [(20, 30)], [0]),
        (f"a {BOI}{BOI}\nb {BOI}", [(300, 300), (256, 600), (1100, 256)], [0, 2, 4]),
        ("ab", [], []),
    ]:
        images = [np.zeros((height, width, 3), dtype=np.uint8) for height, width in shapes]
        peer = processor(text=prompt, images=images or None, do_pan_and_scan=True)
        ids = [int(i) for i in peer["input_ids"][0]]
        assert tokenizer.encode(expand_images(prompt, crops, tokens_per_image=3)) == ids


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("count", [0, 1, 3])
def test_expansion_equals_transformers(save: Callable[..., Path], count: int) -> None:
    processor = peer_processor(save(), tokens=5)
    expected = processor.replace_image_token({"num_crops": [count]}, 0)
    assert expand_images(BOI, [count], tokens_per_image=5) == expected
