"""Prompts with images in them, and a checkpoint's own tokenizer.

`expand_images` is plain string work; `Tokenizer` needs the `tokenizers` library, imported at the first use:
`pip install 't5g2ref[text]'`. `prepare.py` does all of it for rows of prompts; by hand, expand, then encode:

    pixels, crops = preprocess_all([photo], image_size)
    prompt = expand_images("<start_of_image> in this image, there is", crops)
    ids = Tokenizer.from_folder(folder).encode(prompt)

Source: transformers' `Gemma3Processor`, which T5Gemma 2 uses, and `GemmaTokenizer`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from t5g2ref.config.fields import refuse, short
from t5g2ref.files import opened
from t5g2ref.processor.marks import DEFAULTS, Marks, read_marks
from t5g2ref.processor.tokenizer_json import check

T = TypeVar("T")

MAX_BYTES = 64 * 2**20  # Gemma 3's tokenizer.json has 33 MB


def expand_images(
    prompt: str,
    crops: Sequence[int],
    *,
    boi: str = "<start_of_image>",
    image: str = "<image_soft_token>",
    eoi: str = "<end_of_image>",
    tokens_per_image: int = 256,
) -> str:
    """The prompt with each `boi` placeholder grown into the run of tokens that its image fills.

    crops: one count an image, in the order of the placeholders; `t5g2ref.image.preprocess_all` returns it.
    An image is two newlines, boi, tokens_per_image × image, eoi, two newlines; one with crops is a sentence
    that has it and each crop in that form. Nothing is trimmed: a leading placeholder leaves leading newlines.

    Raises ValueError where placeholders and images are not as many, a count is negative, or the prompt
    already holds `image`, as one expanded before does: the model would look for features that do not exist.
    Source: transformers `Gemma3Processor.replace_image_token`.
    """
    pieces = prompt.split(boi)
    found = len(pieces) - 1
    if found != len(crops):
        raise ValueError(f"the prompt has {found} × {boi!r} for {len(crops)} images: write one an image")
    if image in prompt:
        raise ValueError(f"the prompt holds {image!r} already: pass it unexpanded, with one {boi!r} an image")
    if min(crops, default=0) < 0 or tokens_per_image < 1:
        raise ValueError(f"need crops >= 0, tokens_per_image >= 1; found {list(crops)}, {tokens_per_image}")
    one = f"\n\n{boi}{image * tokens_per_image}{eoi}\n\n"
    grown = [_with_crops(one, count) for count in crops]
    return "".join(chain.from_iterable(zip_longest(pieces, grown, fillvalue="")))


def _with_crops(one: str, count: int) -> str:
    if count == 0:
        return one
    crops = " ".join([one] * count)
    return f"Here is the original image {one} and here are some crops to help you see better {crops}"


@dataclass(frozen=True)
class Tokenizer:
    """A checkpoint's tokenizer: text to ids and back.

    Args:
        backend: a `tokenizers.Tokenizer`.
        bos: the text of the token in front.
        marks: what tokenizer_config.json says.
        side: "left" or "right", where rows are padded: as the files say, else left as Gemma's own class.
    """

    backend: Any
    bos: str = "<bos>"
    marks: Marks = DEFAULTS
    side: str = "left"

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Tokenizer:
        """Read a folder's tokenizer.json, and tokenizer_config.json where there is one.

        The second has names, the padding side and further tokens. Its add_bos_token is not looked at.
        Raises FileNotFoundError without the first file, ValueError for one above max_bytes or not valid,
        ImportError without the tokenizers library.
        """
        path = Path(folder) / "tokenizer.json"
        backend = _parse(_read(path, max_bytes), path)
        marks = read_marks(Path(folder))
        _add(backend, marks)
        side = marks.side or (backend.padding or {}).get("direction", "left")
        # A file may carry the settings of whoever saved it, and a prompt cut short loses image tokens.
        # (transformers 5.23 keeps the setting, and then refuses such a prompt.)
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, marks.bos, marks, side)

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """The ids of one text. Special tokens written out in it, as by `expand_images`, become their ids.

        add_bos: None follows tokenizer.json's own template, as the processor does for encoder inputs: Gemma's
        puts a bos in front and no eos behind ("hello" is [2, 23391] in Gemma 3's). True gives a bos and False
        none, whatever the template says; labels want none, their bos comes from the shift. Like the
        processor, this does not look whether the text already begins with a bos.
        Source: transformers `PreTrainedTokenizerBase._from_pretrained`, which drops tokenizer_config.json's
        add_bos_token and add_eos_token where there is a tokenizer.json.
        """
        ids: list[int] = _unbroken(lambda: self.backend.encode(text, add_special_tokens=add_bos is None).ids)
        return [self.id_of(self.bos), *ids] if add_bos else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids, without special tokens unless asked for. Ids that name no token give nothing.

        Raises ValueError for a negative id: -100 marks a label to ignore and has no text.
        """
        plain = [int(i) for i in ids]  # NumPy integers are welcome
        if min(plain, default=0) < 0:
            raise ValueError(f"ids must be at least 0; found {min(plain)}: drop ignored labels first")
        text: str = _unbroken(lambda: self.backend.decode(plain, skip_special_tokens=skip_special))
        return text

    def id_of(self, token: str) -> int:
        """The id of one token by its exact text. Raises ValueError where the vocabulary has none."""
        found: int | None = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no token {token!r}")
        return found


def _read(path: Path, max_bytes: int) -> bytes:
    with opened(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"{path}: more than max_bytes={max_bytes} bytes; raise it if you trust the file")
    return data


def _parse(data: bytes, path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise ImportError("tokenizers are read by a library: pip install 't5g2ref[text]'") from error
    try:
        check(data)
        return _unbroken(lambda: Backend.from_buffer(data))
    except ValueError as error:
        remedy = "give the tokenizer.json of a Gemma checkpoint"
        raise ValueError(f"{path}: not a tokenizer of Gemma's make: {error}; {remedy}") from error


def _add(backend: Any, marks: Marks) -> None:
    """Add the tokens that tokenizer_config.json alone has. ValueError for an id that one cannot get."""
    from tokenizers import AddedToken

    there = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for index, text, flags in marks.added:
        old = there.get(text)
        if old is None or any(getattr(old, name) is not flag for name, flag in flags):
            there[text] = AddedToken(text, **dict(flags))
            _unbroken(lambda token=there[text]: backend.add_tokens([token]))  # type: ignore[misc]
        if (found := backend.token_to_id(text)) != index:
            field = f"tokenizer_config.json.added_tokens_decoder.{index}"
            raise refuse(field, text, f"a token of that id; {short(text)} has {found}", "make both files agree")
    missing = [AddedToken(text, special=True) for text in marks.named if text not in there]
    _unbroken(lambda: backend.add_tokens(missing))


def _unbroken(function: Callable[[], T]) -> T:
    """What the library's function gives. It raises bare Exceptions, and panics, which are BaseExceptions."""
    try:
        return function()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"the tokenizers library failed: {short(str(error))[1:-1]}") from error
