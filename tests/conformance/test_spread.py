"""How a fault is spread over layers, and whether it is the cache's: said only where the findings say it."""

from __future__ import annotations

import pytest

from conformance.report.spread import Row, cache, layers

E, D = "encoder.text_model", "decoder"


def rows(failing: dict[str, str], *, stack: str = E, count: int = 5, call: int = 0) -> list[Row]:
    """Two taps and the output of each layer, and the tap before all of them; `failing`: name → status."""
    names = [f"{stack}.embed_tokens"]
    for i in range(count):
        at = f"{stack}.layers.{i}"
        names += [f"{at}.self_attn.attention", f"{at}.mlp.act_fn", at]
    return [(name, call, failing.get(name, "pass")) for name in names]


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        ({f"{E}.layers.{i}.mlp.act_fn": "values" for i in range(5)}, "in 5 of 5 layers, at the same tap: systematic"),
        (
            {f"{E}.layers.{i}{('', '.mlp.act_fn')[i % 2]}": "tail" for i in range(5)},
            "in 5 of 5 layers, at different taps: systematic",
        ),
        ({f"{E}.layers.{i}.mlp.act_fn": "values" for i in (0, 2)}, "in 2 of 5 layers, at the same tap"),
        ({f"{E}.layers.1": "values", f"{E}.layers.3.mlp.act_fn": "bias"}, "in 2 of 5 layers, at different taps"),
        ({f"{E}.layers.2.mlp.act_fn": "values", f"{E}.layers.2": "values"}, ""),
        ({f"{E}.layers.2": "values", f"{E}.layers.3": "missing", f"{E}.layers.4": "missing"}, ""),
    ],
)
def test_layers(failing: dict[str, str], told: str) -> None:
    found = rows(failing) + rows({f"{D}.layers.0": "values"}, stack=D, count=7)
    said = layers(next(iter(failing)), found)
    assert said.split(", so")[0] == told
    assert ("look at what they share" in said) == ("systematic" in told)


def test_a_tap_outside_the_layers_has_none() -> None:
    assert layers(f"{E}.embed_tokens", rows({f"{E}.embed_tokens": "values", f"{E}.layers.1": "values"})) == ""


@pytest.mark.parametrize(
    ("last", "source"),
    [("keys", "k_rope"), ("values", "v_proj"), ("cross_keys", "cross_k_norm"), ("cross_values", "cross_v_proj")],
)
def test_what_comes_out_of_the_cache(last: str, source: str) -> None:
    at = f"{D}.layers.3.self_attn"
    told = cache(f"{at}.{last}", 2, [(f"{at}.{source}", 0, "pass"), (f"{at}.{last}", 2, "values")])
    assert told.startswith("the cache, or what is joined to it")
    assert source in told
    assert not cache(f"{at}.{last}", 2, [(f"{at}.{source}", 0, "values")]), "what goes in is wrong already"
    assert not cache(f"{at}.{last}", 2, []), "nobody shows what goes in"
    assert not cache(f"{at}.{last}", 2, [(f"{at}.{source}", 3, "pass")]), "nothing was put in yet"


def test_turned_keys_from_behind_the_cache() -> None:
    at = f"{D}.layers.0.self_attn"
    found = [(f"{at}.q_rope", n, "pass") for n in range(3)] + [(f"{at}.k_rope", n, "pass") for n in range(2)]
    assert cache(f"{at}.k_rope", 2, [*found, (f"{at}.k_rope", 2, "values")]).startswith("the cache, if k_rope")
    assert not cache(f"{at}.k_rope", 0, found), "there is nothing in a cache yet"
    assert not cache(f"{at}.k_rope", 2, [*found[:2], (f"{at}.q_rope", 2, "values")]), "the tables are in question"


def test_other_taps_are_no_matter_of_the_cache() -> None:
    at = f"{D}.layers.0.self_attn"
    assert not cache(f"{at}.attention", 2, [(f"{at}.k_rope", 0, "pass"), (f"{at}.", 0, "pass")])


def test_the_text_and_the_page_say_it() -> None:
    pytest.importorskip("rich", reason="needs rich: conformance reports with it")
    pytest.importorskip("jinja2", reason="needs Jinja2: the page is made with it")
    from documents import document, judgement, row

    from conformance.judge.judgement import Judgement
    from conformance.measure.finding import Finding
    from conformance.report import explained
    from conformance.report.html.page import render

    wrong = [f"{D}.layers.{i}.mlp.act_fn" for i in range(2)]
    page = render(document(judgement(*(row(tap, "values", judged=3000.0) for tap in wrong))))
    assert "in 2 of 2 layers, at the same tap: systematic" in page
    at = f"{D}.layers.0.self_attn"
    found = [Finding(f"{at}.k_rope", 0, "pass"), Finding(f"{at}.keys", 0, "values", detail="far off")]
    lines = list(explained._blamed(Judgement("port", "short", found), found[1], None))
    assert any(line.startswith("  it begins at    the cache") for line in lines)
    weights = [Finding("weights.lm_head.weight", 0, "exact", detail="1 of 9 elements differ")]
    lines = list(explained._blamed(Judgement("port", "exact", exact=weights), weights[0], None))
    assert "  failing checks  1 of 1 exact" in lines
