"""Report documents (schema 2) for the tests of what is made of them: small, and wrong in every way there is."""

from __future__ import annotations

import json
from typing import Any

from conformance.defects.catalogue import DEFECTS
from conformance.judge.judgement import Judgement
from conformance.measure.finding import Finding
from conformance.measure.match import Signature
from conformance.report.document import SCHEMA
from conformance.report.document_write import as_json
from conformance.report.result import Result

COLUMNS = (
    *("tap", "call", "status", "worst", "median", "p99", "token", "peer_error", "control_error", "tokens", "detail"),
    *("judged", "limit", "tail", "bias", "ceiling"),
)
ENC, DEC = "encoder.text_model", "decoder"
LAYER = ("pre_self_attn_layernorm", "self_attn.q_proj", "self_attn.mask", "self_attn.attention", "mlp.act_fn")
LOCAL = (
    f"{ENC}.embed_tokens",
    "encoder.vision_tower.encoder.layers.0.mlp.fc1",
    "encoder.multi_modal_projector.projected",
    f"{ENC}.inputs_embeds",
    *(f"{ENC}.layers.{i}.{part}" for i in range(2) for part in LAYER),
    f"{ENC}.norm",
    f"{DEC}.embed_tokens",
    *(f"{DEC}.layers.{i}.{part}" for i in range(2) for part in LAYER),
    "lm_head",
    "logits",
)
SPINE = (f"{ENC}.inputs_embeds", f"{ENC}.layers.0", f"{ENC}.layers.1", f"{DEC}.layers.0", f"{DEC}.layers.1", "logits")

Row = list[Any]


def row(tap: str, status: str = "pass", judged: Any = 1.1, call: int = 0, **more: Any) -> Row:
    """A finding; the columns that are not named have plain values."""
    detail = "" if status == "pass" else f"what is wrong at {tap}"
    found = {
        "tap": tap,
        "call": call,
        "status": status,
        "worst": judged,
        "median": 0.9,
        "p99": judged,
        "token": [0, 1],
        "peer_error": 1e-7,
        "control_error": 1e-7,
        "tokens": 4,
        "detail": detail,
        "judged": judged,
        "limit": 8.0,
        "tail": "nan",
        "bias": "nan",
        "ceiling": "nan",
    }
    return [(found | more)[column] for column in COLUMNS]


def local(wrong: dict[str, Row] | None = None, calls: int = 1) -> list[Row]:
    return [(wrong or {}).get(tap, row(tap, call=call)) for call in range(calls) for tap in LOCAL]


def named(defect: str = "D52", tap: str = f"{DEC}.layers.1.mlp.act_fn", verdict: str = "named") -> dict[str, Any]:
    return {"defect": defect, "tap": tap, "coefficient": 1.01, "error": 0.02, "residual": 0.3, "verdict": verdict}


def judgement(
    *wrong: Row, peer: str = "port", case: str = "short", target: str = "tiny", **more: Any
) -> dict[str, Any]:
    """One peer on one case; `wrong` are its failing local taps, in order."""
    found = {
        "target": target,
        "peer": peer,
        "case": case,
        "title": "one short source",
        "dtype": "float32",
        "passed": not wrong,
        "deviates": bool(wrong),
        "error": "",
        "skipped": "",
        "known": "",
        "culprit": dict(zip(COLUMNS, wrong[0], strict=True)) if wrong else None,
        "seconds": {"peer": 0.5, "reference": 1.25},
        "local": local({bad[0]: bad for bad in wrong}),
        "cumulative": [row(tap, judged=0.8) for tap in SPINE],
        "exact": [],
        "named": [],
        "logits": {},
        "k": [],
        "unclear": [],
        "masks": [],
        "token": "",
        "repeated": 4,
        "unsteady": "",
    }
    return found | more


def document(*judgements: dict[str, Any], **more: Any) -> dict[str, Any]:
    verdict = "DEVIATES" if any(j["deviates"] for j in judgements) else "CONFORMS"
    verdict = verdict if all(j["passed"] or j["deviates"] or j["known"] for j in judgements) else "INCOMPLETE"
    found = {
        "schema": SCHEMA,
        "verdict": verdict,
        "line": f"VERDICT: {verdict}",
        "limits": {"local": 8.0, "cumulative": 8.0, "half": 2.0},
        "environment": {"t5g2ref": "0.1.0", "numpy": "2.4.6", "transformers": "5.23.0"},
        "seconds": 12.5,
        "peak_bytes": 2**28,
        "cases": {"selected": len(judgements), "available": 21},
        "exposes": {"short": ["D01", "D52"]},
        "not_exposed": {"D47": "one kv head", "D57": "no such cache"},
        "defects": dict(DEFECTS),
        "notes": [],
        "columns": list(COLUMNS),
        "judgements": list(judgements),
        "known": [],
    }
    return found | more


def known(state: str = "seen", **more: Any) -> dict[str, Any]:
    found = {"peer": "port", "case": "short", "tap": "logits", "status": "values", "reason": "until 5.24"}
    link = {"link": "https://example.org/1", "versions": {"transformers": ">=5.20,<5.24"}, "state": state}
    return found | link | more


BAND = ["xx...", "xxx..", ".xxx.", "..xxx", "...xx"]
WIDER = ["xxx..", "xxxx.", ".xxxx", "..xxx", "..xxx"]


def everything() -> dict[str, Any]:
    """A document with one of each: a pass, faults with and without a number, an error, a skip, a known deviation, an
    unclear lane, a half-precision fault that only its pattern shows."""
    bad = row(f"{DEC}.layers.1.mlp.act_fn", "values", 3661.0)
    picture = {"tap": f"{ENC}.layers.0.self_attn.mask", "call": 0, "row": 0, "expected": BAND, "found": WIDER}
    raised = [row(tap, "missing", "nan") if tap.startswith(DEC) else row(tap) for tap in LOCAL]
    half = row(f"{DEC}.layers.0.mlp.act_fn", "signature", 1.01, limit=0.5, tail=1.1, bias=0.01, ceiling=0.4, worst=1.0)
    limits = [{"kind": "decoder.layers.*.mlp.act_fn", "median": 1.1, "worst": 2.0, "tokens": 8, "raw": [1.1, 4.4]}]
    return document(
        judgement(peer="right", case="right"),
        judgement(bad, named=[named()], logits={"kl": 1e-9, "kl_ratio": 40.0, "tokens": 4.0}),
        judgement(
            row(f"{ENC}.layers.0.self_attn.mask", "mask", "nan"),
            case="window",
            masks=[{**picture, "clipped": False}],
        ),
        judgement(row(f"{ENC}.layers.1.self_attn.q_proj", "nan", "nan"), case="eoi"),
        judgement(case="raises", passed=False, error="RuntimeError: no kernel", local=raised, cumulative=[]),
        judgement(case="skips", passed=False, skipped="no images (https://example.org/2)", local=[], cumulative=[]),
        judgement(case="left", passed=False, skipped="text only", known="as planned (https://example.org/3)", local=[]),
        judgement(bad, case="known", deviates=False, known="a table until 5.24 (https://example.org/1)"),
        judgement(case="unclear", passed=False, unclear=["decoder.layers.*.mlp.act_fn"], dtype="bfloat16", k=limits),
        judgement(half, case="half", dtype="bfloat16", named=[named(), named("D13", verdict="no power")], k=limits),
        judgement(case="exact", local=[], cumulative=[], exact=[row("weights", judged=0.0), row("probe-window")]),
        known=[
            known(),
            known("unexpected pass", tap="loss"),
            known("not run", tap="score"),
            known(tap="", status="skipped"),
        ],
        notes=["float16 was not run"],
    )


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "\"'><svg onload=alert(1)>",
    "]]>&amp;<!--",
    "javascript:alert(1)",
    "https://example.org/\"onmouseover='alert(1)",
    "a\x00b\x1bc\x7fd\x85e\ud800f\ufffeg",
    "right\u202eto left\u2066",
    "{{ 7 * 7 }}{% raw %}",
)


def hostile(text: str) -> dict[str, Any]:
    """A document with this text wherever text from outside can stand."""
    bad = row(text, "values", 99.0, detail=text)
    picture = {"tap": text, "call": 0, "row": 0, "expected": BAND, "found": WIDER, "clipped": True}
    limits = [{"kind": text, "median": 1.1, "worst": 2.0, "tokens": 8, "raw": [1.1, 4.4]}]
    names = {"peer": text, "case": text, "target": text, "title": text}
    shown = judgement(bad, **names, token=text, masks=[picture], named=[named(text, text)], k=limits, local=[bad])
    shown |= {"exact": [bad], "logits": {text: 1.0, "kl_ratio": 2.0}, "unclear": [text], "error": text}
    return document(
        shown,
        judgement(**names | {"case": "2"}, passed=False, skipped=text, local=[]),
        judgement(**names | {"case": "3"}, passed=False, error=text, local=[]),
        judgement(**names | {"case": "4"}, passed=False, known=text),
        judgement(**names | {"case": "5"}, passed=False, unclear=[text]),
        line=text,
        environment={text: text},
        notes=[text],
        exposes={text: [text]},
        not_exposed={text: text},
        defects={text: text},
        known=[known(tap=text, reason=text, link=text, versions={text: text}, peer=text, state=text)],
    )


def real() -> dict[str, Any]:
    """A document as the judge's own objects give it."""
    good, bad = Finding("logits", 0, "pass", 1.0, 1.0, 1.0, (0, 1), judged=1.0), Finding("logits", 1, "nan")
    sign = Signature("D52", "decoder.layers.*.mlp.act_fn", 1.0, 0.01, 0.2, "named")
    judged = Judgement("port", "short", [good, bad], [good], named=[sign], logits={"kl": 1e-9}, seconds={"peer": 1.0})
    result = Result([("tiny", judged)], {"short": ("D01",)}, {"D47": "one kv head"}, {"torch": "2.13"}, 1, 21)
    found: dict[str, Any] = json.loads(as_json(result))
    return found
