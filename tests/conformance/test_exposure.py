"""What the cases can show: every defect is exposed by some case, or there is a reason why not."""

from __future__ import annotations

import pytest
from built_cases import GEOMETRIES, built, geometry

from conformance.cases import generating
from conformance.cases.catalogue import select
from conformance.defects.catalogue import DEFECTS
from conformance.defects.exposure import hidden


@pytest.mark.parametrize("name", GEOMETRIES)
def test_exposures_are_known_defects(name: str) -> None:
    for c in built(name):
        assert c.exposes, f"{c.name} says what it is for"
        assert set(c.exposes) <= set(DEFECTS), c.name
        assert len(set(c.exposes)) == len(c.exposes), c.name


SLOTS = {"D57", "D75"}  # of a preallocated cache


def test_every_defect_is_exposed_or_has_a_reason() -> None:
    configs = [geometry("tiny"), geometry("tiny-even")]
    every = [*built("tiny"), *generating.build(geometry("tiny"))]
    assert set(hidden(configs, built("tiny"))) - set(hidden(configs, every)) == {"D78"}, "the generation lane's own"
    reasons, shown = hidden(configs, every), {d for c in every for d in c.exposes}
    assert set(reasons) == {"D02", "D11", "D12", "D13", "D63", "D58", "D49", "D57", "D75", "D76", "D77"}
    assert set(reasons) & shown == SLOTS, "a case shows them, in a peer whose cache has them"
    assert all(reasons.values())
    assert set(DEFECTS) - set(reasons) <= shown | {
        "D50",
        "D51",
        "D66",
        "D80",
        "D83",
        "D84",
    }  # which any case of this lane shows


def test_the_even_window_alone_hides_the_final_softcap() -> None:
    """tiny sets final_logit_softcapping and tiny-even, as the released ones, does not; nothing else is hidden more."""
    tiny, even = geometry("tiny"), geometry("tiny-even")
    assert tiny.decoder.final_logit_softcapping is not None
    assert even.decoder.final_logit_softcapping is None
    both = hidden([tiny], built("tiny"))
    alone = hidden([even], built("tiny-even"))
    assert "D50" not in both
    assert "final_logit_softcapping is null" in alone.pop("D50")
    assert alone == both
    assert hidden([tiny, even], built("tiny")) == both, "beside tiny it is exposed"


@pytest.mark.parametrize("defect", ["D49", "D76", "D77"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_no_case_here_can_show_is_never_exposed(defect: str, name: str) -> None:
    assert not any(defect in c.exposes for c in built(name))
    reason = hidden([geometry(name), geometry("tiny")], built(name))[defect]
    assert reason
    assert "no case that was run" not in reason, "a reason of its own"


@pytest.mark.parametrize(
    ("name", "more"),
    [("270m", "D06 D23 D46 D47 D71"), ("1b", "D06 D23 D46 D47 D71"), ("4b", "D06 D23 D46 D71")],
)
def test_released_geometries_hide_some(name: str, more: str) -> None:
    """A case's label alone is not enough: one kv head hides the order of the heads, and so on. The report says so."""
    reasons = hidden([geometry(name)], built(name))
    geometric = {d: r for d, r in reasons.items() if any(d in c.exposes for c in built(name)) and d not in SLOTS}
    assert sorted(geometric) == more.split()
    assert "final_logit_softcapping is null" in reasons["D50"], "any case shows it where it is set, and here it is not"
    assert "D50" not in hidden([geometry(name), geometry("tiny")], built(name))
    assert "no case" not in " ".join(geometric.values())
    # beside a checkpoint that shows them they are exposed
    assert not set(geometric) & set(hidden([geometry(name), geometry("tiny")], built(name)))


@pytest.mark.parametrize("dropped", ["decoder-* masked-*", "padded-left*", "images", "second-source", "cross-cached"])
def test_a_case_left_out_is_noticed(dropped: str) -> None:
    left_out = select(built("tiny"), dropped.split())
    only = {d for c in left_out for d in c.exposes}
    rest = [c for c in built("tiny") if c not in left_out]
    only -= {d for c in rest for d in c.exposes} | SLOTS
    reasons = hidden([geometry("tiny")], rest)
    assert only
    assert {reasons[d] for d in only} == {"no case that was run exposes it"}


def test_no_case_exposes_nothing() -> None:
    assert set(hidden([geometry("tiny")], [])) == set(DEFECTS)


def test_cases_without_a_cache_claim_no_cache_defect() -> None:
    """Position slips, split prefills and unfilled slots need a second call; left padding alone shifts positions."""
    for c in built("tiny"):
        if all(run.splits is None for run in c.runs):
            assert not set(c.exposes) & {"D28", "D36", "D54", "D55", "D56", "D57", "D74", "D75"}, c.name
        if "D29" in c.exposes:
            assert c.name in ("padded-left", "padded-left-cached")


@pytest.mark.parametrize("hidden", [{}, {"D47": "one kv head", "D46": "one kv head"}])
def test_the_text_lists_what_is_not_exposed_where_there_is_any(hidden: dict[str, str]) -> None:
    pytest.importorskip("rich", reason="needs rich: the report is printed with it")
    from conformance.report import text
    from conformance.report.result import Result

    lines = text._summary(Result([], {}, hidden, {}, 1, 1), 100).plain.splitlines()
    every = len(DEFECTS)
    if hidden:
        assert lines[-2:] == [
            f"exposed {every - 2} of {every} catalogued defects; not these:",
            "  D47 D46: one kv head",
        ]
    else:
        assert lines[-1] == f"exposed {every} of {every} catalogued defects"
