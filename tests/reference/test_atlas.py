"""The atlas: one page that loads nothing, whose drawings are the model's numbers and whose links are its lines."""

from __future__ import annotations

import base64
import io
import linecache
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import t5g2ref
from t5g2ref.atlas import attending, grids, pictures, plots, seen, tokens
from t5g2ref.atlas.gather import LONGEST, MOST_LAYERS, MOST_NEW, PHOTOS, Gathered, gather, looked_at, shown
from t5g2ref.atlas.looking import HEADS, looked, patch_names
from t5g2ref.atlas.places import ROOT, Places
from t5g2ref.attention import attend, merge_heads, split_heads
from t5g2ref.command_line import main
from t5g2ref.commands import atlas as command
from t5g2ref.config import PRESETS
from t5g2ref.generate.greedy import greedy
from t5g2ref.model import T5Gemma2
from t5g2ref.trace import recorder

SECTIONS = ("way", "input", "choices", "merged", "tower", "self", "masks", "rope", "depth", "taps", "code")
DEMO = t5g2ref.bundled("demo")
LINE = re.compile(r"trace\(|inner\(|lazy\(")
VOID = {"meta", "input", "img", "br", "wbr", "path", "rect", "image", "circle"}


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def every(self, name: str) -> list[str]:
        """The values of an attribute."""
        return [value or "" for _, found in self.tags for key, value in found.items() if key == name]


def made(folder: Path, *arguments: str) -> str:
    """The page that the command writes."""
    pytest.importorskip("PIL", reason="needs Pillow: its drawings are PNGs")
    pytest.importorskip("jinja2", reason="needs Jinja2, which makes the page")
    assert main(["atlas", "--html", str(folder / "page.html"), *arguments]) == 0
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("tokenizers", reason="needs tokenizers, which read the demo's prompt")
    return made(tmp_path_factory.mktemp("atlas"))


@pytest.fixture(scope="module")
def page(demo: str) -> Page:
    return Page(demo)


@pytest.fixture(scope="module")
def model() -> T5Gemma2:
    return t5g2ref.load(t5g2ref.bundled("tiny"))


@pytest.fixture(scope="module")
def found(model: T5Gemma2) -> Gathered:
    return gather(model, [[5, 17, 42, 90, 12, 33, 8, 61, 7, 19, 30, 2]], max_new_tokens=5)


# The page


def test_it_is_one_file_that_loads_nothing(page: Page, demo: str) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert all(address.startswith("data:image/png;base64,") for address in page.every("src"))
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.every("href"))
    assert not page.every("style")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    (style,) = re.findall(r"<style>(.*?)</style>", demo, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page.every("content")[0]
    assert len(demo.encode()) < 650_000
    assert page.open == []


def test_every_section_is_there_and_every_link_leads_somewhere(page: Page) -> None:
    ids = page.every("id")
    assert len(ids) == len(set(ids))
    assert [one for one in ids if one in SECTIONS] == list(SECTIONS)
    links = [address[1:] for address in page.every("href") if address.startswith("#")]
    assert len(links) > 250
    assert set(links) <= set(ids)


def test_it_says_what_was_asked_and_answered(page: Page) -> None:
    for part in ("add <start_of_image> <start_of_image>", "three plus five is eight", "Picture 2: 8 × 8 patches"):
        assert part in page.text
    assert page.text.count("t5g2ref/attention.py:") > 50
    assert str(ROOT) not in page.text


def test_it_is_used_by_keyboard(page: Page, demo: str) -> None:
    scrolled = [found for _, found in page.tags if found.get("class") in ("scroll", "source", "fact mono")]
    assert len(scrolled) > 30
    assert all(found["tabindex"] == "0" and found["role"] == "region" and found["aria-label"] for found in scrolled)
    radios = [found["id"] for tag, found in page.tags if tag == "input"]
    assert radios == [found["for"] for tag, found in page.tags if tag == "label"]
    assert all(found["alt"] for tag, found in page.tags if tag == "img")
    for most in (MOST_NEW, MOST_LAYERS + 1):  # panels that the style sheet can show
        assert f"input:nth-of-type({most}):checked ~ .panel:nth-of-type({most})" in demo
    for rule in ("prefers-color-scheme: dark", ":focus-visible", "print"):
        assert rule in demo


HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>\u202e{{ 7 * 7 }}</pre></style>'


def test_what_was_typed_is_escaped(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs tokenizers, which read the prompt")
    page = Page(made(tmp_path, "--prompt", HOSTILE, "--max-new-tokens", "2"))
    assert not {"script"} & {tag for tag, _ in page.tags}
    assert "x" not in page.every("src")
    assert HOSTILE.replace("\u202e", "\\u202e") in page.text


def test_lines_of_code_link_where_one_says(tmp_path: Path) -> None:
    text = made(tmp_path, "--ckpt", "tiny", "--ids", "5,17", "--max-new-tokens", "1", "--code", "https://a.b/blob/m/")
    outside = [address for address in Page(text).every("href") if address.startswith("https:")]
    assert len(outside) > 250
    assert all(re.fullmatch(r"https://a\.b/blob/m/t5g2ref/\w+\.py#L\d+", address) for address in outside)


def test_an_encoder_alone_has_no_decoder_s_sections(tmp_path: Path) -> None:
    ids = Page(made(tmp_path, "--ckpt", "tiny-encoder", "--ids", "5,17,42")).every("id")
    assert [one for one in ids if one in SECTIONS] == [
        one for one in SECTIONS if one not in ("choices", "merged", "tower")
    ]


def test_a_long_input_stays_small(tmp_path: Path) -> None:
    ids = ",".join(str(5 + i % 200) for i in range(LONGEST))
    text = made(tmp_path, "--ckpt", "tiny-even", "--ids", ids, "--max-new-tokens", "3")
    assert len(text) < 3_000_000
    assert "show the largest weight of each block" in text


# The numbers


@pytest.mark.parametrize("name", ["tiny", "tiny-released"])
def test_weights_times_values_are_the_tap(name: str) -> None:
    model, taps = t5g2ref.load(t5g2ref.bundled(name)), dict[str, Any]()
    ids = np.arange(5, 29)[None]
    model(ids, ids[:, 3:20], trace=recorder(taps))
    for stack, config in (("encoder.text_model", model.config.encoder), ("decoder", model.config.decoder)):
        for layer in range(config.num_hidden_layers):
            at = f"{stack}.layers.{layer}.self_attn"
            if stack == "decoder":
                weights = attending.decoder_weights(model, taps, layer)
                values = np.concatenate([taps[f"{at}.values"], taps[f"{at}.cross_values"]], axis=2)
            else:
                weights = attending.encoder_weights(model, taps, layer)
                values = split_heads(taps[f"{at}.v_proj"], config.head_dim)
            np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-12)
            assert not weights[~np.broadcast_to(taps[f"{at}.mask"][:, None], weights.shape)].any()
            out = merge_heads(weights @ values.repeat(config.groups, axis=1))
            np.testing.assert_allclose(out, taps[f"{at}.attention"], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def eyes() -> tuple[T5Gemma2, dict[str, Any], Gathered]:
    """The demo with two pictures: every tap, and what is gathered."""
    model, taps = t5g2ref.load(DEMO, "float64"), dict[str, Any]()
    ids = [[2, *[6] * 4, 9, *[6] * 4, 11]]
    pixels = np.random.default_rng(2).uniform(-1, 1, (2, 3, 32, 32))
    model.encode(ids, pixel_values=pixels, trace=recorder(taps))
    return model, taps, gather(model, ids, pixels, max_new_tokens=1)


def test_the_tower_s_weights_times_values_are_the_tap(eyes: tuple[T5Gemma2, dict[str, Any], Gathered]) -> None:
    """Of the first picture as they are, since 64 patches are no more than a drawing has cells."""
    model, taps, found = eyes
    config = model.config.vision
    assert sorted(found.looked) == list(range(config.num_hidden_layers))
    for layer, seen_ in found.looked.items():
        at = f"encoder.vision_tower.encoder.layers.{layer}.self_attn"
        values = split_heads(taps[f"{at}.v_proj"], config.head_dim)[:1]
        weights = np.stack(seen_.heads)[None]
        np.testing.assert_allclose(merge_heads(weights @ values), taps[f"{at}.attention"][:1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(seen_.mean, weights[0].mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(seen_.given[0], weights[0].mean(axis=(0, 1)), rtol=1e-13)
        np.testing.assert_allclose(seen_.given.sum(axis=1), 1.0, atol=1e-13)


def test_many_patches_heads_and_pictures_are_kept_in_short(eyes: tuple[T5Gemma2, dict[str, Any], Gathered]) -> None:
    from dataclasses import replace

    model = eyes[0]
    heads = replace(model.config.vision, num_attention_heads=HEADS + 2, hidden_size=4 * (HEADS + 2))
    wide = T5Gemma2(replace(model.config, vision=heads), model.weights, model.nx)
    q, k = np.random.default_rng(3).normal(size=(2, PHOTOS + 1, 200, 4 * (HEADS + 2)))
    found = looked(wide, q, k, PHOTOS)
    assert found.mean.shape == (grids.SIDE, grids.SIDE)
    assert [head.shape for head in found.heads] == [(64, 64)] * HEADS
    assert found.given.shape == (PHOTOS, 200)
    assert patch_names(20)[:3] == ["0,0", "0,3", "0,6"]
    assert (len(patch_names(20)), patch_names(8)[9]) == (grids.SIDE, "1,1")


def test_what_patches_get_lies_over_their_own_picture(
    eyes: tuple[T5Gemma2, dict[str, Any], Gathered], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    from t5g2ref.atlas.heads import Heads

    _, _, found = eyes
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "strength", lambda weights, *_: drawn.append(weights) or "")
    layers = Heads(found, [], [], []).tower_attention()
    first = found.looked[0].given
    np.testing.assert_array_equal(drawn[5:7], first.reshape(2, 8, 8))  # behind the mean and four heads
    np.testing.assert_allclose([times for _, times in layers[0]["looks"]], first.max(axis=1) * 64)
    assert [layer["layer"] for layer in layers] == [0, 1, 2]


def test_one_call_chooses_as_the_steps_did(model: T5Gemma2, found: Gathered) -> None:
    assert found.logits is not None
    assert found.chosen is not None
    assert found.chosen.tolist() == greedy(model, found.ids[None], max_new_tokens=5).ids[0, 1:].tolist()
    assert found.logits.argmax(axis=-1).tolist() == found.chosen.tolist()


def test_every_tap_has_the_line_that_made_it(found: Gathered) -> None:
    assert len(found.taps) > 300
    for tap in found.taps:
        assert LINE.search(linecache.getline(str(ROOT / tap.place.file), tap.place.line)), tap.name


def test_a_function_s_line_is_its_definition() -> None:
    places = Places()
    place = places.of(attend)
    assert linecache.getline(str(ROOT / place.file), place.line).startswith("def attend(")
    (file,) = places.files()
    assert "One softmax over two groups of keys" in file.fact
    (source,) = file.sources
    assert source.fact.startswith("One softmax over the keys of all groups")
    assert not any("One softmax" in text for _, _, text in source.numbered)


def test_what_is_left_out_is_never_a_kind_of_layer() -> None:
    for config in PRESETS.values():
        layers = shown(config.decoder)
        assert layers[0] == 0
        assert layers[-1] == config.decoder.num_hidden_layers - 1
        assert len(layers) <= MOST_LAYERS + 1
        assert {config.decoder.layer_types[i] for i in layers} == set(config.decoder.layer_types)
    tower = PRESETS["270m"].vision
    assert len(shown(tower)) == MOST_LAYERS
    assert looked_at(tower) == [0, 9, 17, 26]
    assert set(looked_at(tower)) <= set(shown(tower))


# The drawings


def opened(address: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_a_picture_is_what_the_tower_sees() -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    from t5g2ref.processor.image import preprocess

    pixels = preprocess(DEMO / "pictures" / "three.png", 32)
    np.testing.assert_array_equal(
        np.asarray(opened(pictures.photo(pixels))), np.rint((pixels + 1) * 127.5).T.swapaxes(0, 1)
    )


def test_colours_are_signs_and_opacity_is_size() -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    drawn = np.asarray(opened(pictures.signed(np.array([[0.0, 2.0, -2.0, 1.0]]))).convert("RGBA"))[0]
    assert drawn[:, 3].tolist() == [0, 255, 255, 146]  # of seven steps the fourth
    assert (tuple(drawn[1, :3]), tuple(drawn[2, :3])) == (pictures.BLUE, pictures.ORANGE)
    assert not np.asarray(opened(pictures.signed(np.zeros((3, 3)))).convert("RGBA"))[..., 3].any()
    weights = np.asarray(opened(pictures.strength(np.array([[0.0, 0.25, 1.0]]))).convert("RGBA"))[0]
    assert weights[:, 3].tolist() == [0, 136, 255]  # of fifteen steps the eighth


def areas(path: str) -> Iterator[tuple[float, float, float, float]]:
    for x, y, width, height in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z", path):
        yield float(x), float(y), float(width), float(height)


@pytest.mark.parametrize("cell", [4.0, 12.0])
def test_a_mask_s_drawing_has_its_cells(cell: float) -> None:
    tall = cell + 1
    mask, again = np.random.default_rng(1).random((7, 9)) < 0.5, np.zeros((7, 9), dtype=bool)
    for x, y, width, _ in areas(plots.mask_path(mask, (cell, tall), 4, 16)):
        first = round((x - (16 if x >= 4 * cell + 16 else 0)) / cell)
        again[round(y / tall), first : first + round(width / cell + 0.01)] = True
    np.testing.assert_array_equal(again, mask)


def test_blocks_keep_what_is_farthest_from_zero() -> None:
    numbers = np.array([[1.0, -5.0, 2.0, 0.0], [3.0, 4.0, 0.0, -1.0]])
    np.testing.assert_array_equal(seen.shrunk(numbers, 1, 2), [[-5.0, 2.0]])
    np.testing.assert_array_equal(seen.shrunk(numbers, 16, 64), numbers)


def test_the_halves_of_a_row_and_the_encoder_s_share() -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    grid = grids.weighed("", np.array([[0.25, 0.0, 0.75]]), ["q"], ["own", "a", "b"], own=1)
    assert [half.name for half in grid.halves] == ["own past", "encoder"]
    assert [text for _, text in grid.shares] == ["75 %"]
    assert grid.halves[1].x == grid.halves[0].width + grids.GAP


def test_a_step_s_looks_are_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The squares over a picture are the weights of its tokens in the merged row, in reading order."""
    pytest.importorskip("PIL", reason="needs Pillow")
    from t5g2ref.atlas.heads import Heads

    model, image, size = t5g2ref.load(DEMO, "float64"), 6, 32
    pixels = np.random.default_rng(2).uniform(-1, 1, (2, 3, size, size))
    found = gather(model, [[2, *[image] * 4, 9, *[image] * 4, 11]], pixels, max_new_tokens=3)
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "strength", lambda weights, *_: drawn.append(weights) or "")
    assert found.start is not None
    own = ["t"] * len(found.start)
    (first, *_) = Heads(found, ["s"] * 11, own, own).steps()
    rows = [attending.decoder_weights(model, found.kept, i)[0, :, 0].mean(axis=0) for i in range(4)]
    row = np.mean(rows, axis=0)[len(own) :]
    np.testing.assert_allclose([share for _, share in first["looks"]], [row[1:5].sum(), row[6:10].sum()])
    np.testing.assert_allclose(drawn[2].reshape(-1), row[1:5])  # behind the two halves of the row


def test_a_picture_of_many_tokens_is_one_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    from t5g2ref.atlas import view

    model = t5g2ref.load(DEMO)
    found = gather(model, [[2, 6, 6, 6, 6, 9, 6, 6, 6, 6]], np.zeros((2, 3, 32, 32)), max_new_tokens=1)
    assert len(view.View(found, None).chips()) == 10
    monkeypatch.setattr(view, "CHIPS", 3)
    chips = [("0", "2"), ("1 to 4", "img 1.0 to img 1.3"), ("5", "9"), ("6 to 9", "img 2.0 to img 2.3")]
    assert view.View(found, None).chips() == chips


def test_names_of_tokens_hide_nothing() -> None:
    assert tokens.visible("a\u202eb\n\x07") == "a\\u202eb\\n\\u0007"
    assert tokens.named([7, 9, 9, 9, 9], None, 9, 2) == ["7", "img 1.0", "img 1.1", "img 2.0", "img 2.1"]


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt", "nowhere", "--ids", "5"], "nowhere: no such folder"),
        (["--ckpt", "tiny", "--ids", ",".join("5" * (LONGEST + 1))], "the source has 321 tokens, expected at most 320"),
        (["--ckpt", "tiny", "--ids", "5", "--max-new-tokens", "33"], "--max-new-tokens: expected 1 to 32"),
        (["--ckpt", "tiny", "--ids", "5", "--code", "javascript:x"], "--code: expected an address such as https://"),
        (["--ckpt", "tiny"], "give one of --prompt TEXT and --ids 5,17,42"),
        (["--ckpt", "tiny", "--ids", "5,9999"], "input_ids: ids must lie in [0, 311), found 9999"),
        (["--ckpt", "tiny", "--ids", "5", "--html", "."], "Is a directory"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2", reason="needs Jinja2: without it that is the error")
    assert main(["atlas", "--html", str(tmp_path / "page.html"), *arguments]) == 2
    assert not list(tmp_path.iterdir()), "nothing is left"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("t5g2ref: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_where_the_page_goes_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken by a model that runs for minutes before it is known that the page cannot be written."""
    pytest.importorskip("jinja2", reason="needs Jinja2: without it that is the error")
    monkeypatch.setattr(t5g2ref, "load", None)
    assert main(["atlas", "--ckpt", "tiny", "--ids", "5", "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    (tmp_path / "page.html").write_text("before")
    assert main(["atlas", "--ckpt", "nowhere", "--ids", "5", "--html", str(tmp_path / "page.html")]) == 2
    assert (tmp_path / "page.html").read_text() == "before", "what is there stays until the page is made"


def test_it_prints_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the answer has several."""
    pytest.importorskip("jinja2", reason="needs Jinja2: the page is made with it")
    monkeypatch.setattr(command, "_answer", lambda *_: "one\n two\r\nthree")
    assert main(["atlas", "--ckpt", "tiny", "--ids", "5,7", "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert out.endswith("; one two three\n")
    assert out.count("\n") == 1


@pytest.mark.parametrize("library", ["jinja2", "PIL"])
def test_without_its_libraries_it_says_what_to_install(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else object())
    assert main(["atlas", "--html", "page.html"]) == 2
    assert capsys.readouterr().err == "t5g2ref: the atlas needs Jinja2 and Pillow: pip install 't5g2ref[atlas]'\n"
