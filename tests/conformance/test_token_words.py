"""The id at a token: as the case gave it, in every kind of rows, and named where it is a special one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from command_line import Ours
from documents import document, judgement, row
from dumping import case_of, tiny

from conformance.cases.token_words import said
from conformance.judge.judge import judge
from conformance.report import explained
from conformance.report.html.page import render

ENC, DEC = "encoder.text_model", "decoder"


@pytest.mark.parametrize(
    ("case", "call", "tap", "where"),
    [
        ("short", 0, f"{ENC}.layers.0", ("input_ids", 0)),
        ("short", 0, f"{DEC}.layers.0.self_attn.cross_keys", ("input_ids", 0)),
        ("short", 0, f"{DEC}.layers.2.mlp.act_fn", ("decoder_input_ids", 0)),
        ("padded-left-cached", 2, f"{DEC}.layers.0.self_attn.q_norm", ("decoder_input_ids", 5)),
        ("padded-left-cached", 2, f"{DEC}.layers.2.self_attn.keys", ("decoder_input_ids", 0)),
        ("padded-left-cached", 2, "logits", ("decoder_input_ids", 5)),
    ],
)
def test_the_id_is_the_case_s(case: str, call: int, tap: str, where: tuple[str, int]) -> None:
    target = tiny()
    chosen = case_of(target, case)
    ids = getattr(chosen.calls[call][0], where[0])
    assert said(target.config, chosen, call, tap, (0, 1)).split(",")[0] == str(ids[0, where[1] + 1])


def test_a_special_id_has_its_name() -> None:
    target = tiny()
    case = case_of(target, "eoi")
    row_, column = (int(i) for i in np.argwhere(case.runs[0].input_ids == 301)[0])
    assert said(target.config, case, 0, f"{ENC}.embed_tokens", (row_, column)) == "301, eoi_token_index"
    for tap, token in (
        ("loss", ()),
        (f"{ENC}.embed_tokens", ()),
        (f"{ENC}.embed_tokens", (0, 10**6)),
        ("no.tap", (0, 0)),
    ):
        assert said(target.config, case, 0, tap, token) == ""


def test_a_failure_at_one_id_says_which() -> None:
    """The end-of-image id's own row is scaled, as the others are."""
    target = tiny()
    case = case_of(target, "eoi")

    def scaled(call: int, name: str, value: Any) -> Any:
        where = case.runs[0].input_ids == 301
        return np.where(where[..., None], value * np.float32(6.9), value) if name == f"{ENC}.embed_tokens" else value

    peer = Ours("port", scaled)
    peer.open(target)
    found = judge(peer, target, case)
    assert found.culprit is not None
    assert found.token == "301, eoi_token_index"
    lines = "\n".join(explained._blamed(found, found.culprit, None))
    assert f"at token {found.culprit.token} (id 301, eoi_token_index), " in lines


def test_the_page_says_it_too() -> None:
    wrong = row("logits", "values", 99.0)
    assert "at token (0, 1) (id 301, eoi_token_index) of 4" in render(
        document(judgement(wrong, token="301, eoi_token_index"))
    )
    unnumbered = judgement(row("logits", "mask", "nan", worst="nan"), token="7")
    assert "<dt>at the id</dt><dd>7</dd>" in render(document(unnumbered))
    del unnumbered["token"]
    assert "at the id" not in render(document(unnumbered)), "an older report has none"
