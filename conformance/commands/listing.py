"""The command `list`: the cases, taps, faults, checkpoints and peers that there are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from conformance.cases import catalogue as case_list
from conformance.cases import long, pictured
from conformance.cases.case import Case
from conformance.checkpoints import BUNDLED, HUB
from conformance.defects.catalogue import DEFECTS, SEEN
from conformance.peers.find import FORMS, names
from t5g2ref.checkpoint.find import variable


def show(what: str) -> int:
    """Print one of the lists; returns 0."""
    from conformance.peers import entry_points as plugins
    from t5g2ref import bundled, tap_words, taps
    from t5g2ref.config import Config

    config = Config.load(bundled("tiny"))
    if what == "cases":
        _cases([*case_list.build(config), *pictured.build(config)])
        print("\n  By --case NAME alone, in float32:\n")
        _cases(long.build(config))
    elif what == "taps":
        for tap in taps.table(config, loss=True):
            print(f"{tap.name:62} {tap.shape:10} {'mask' if tap.exact else ''}")
        print("\n  What they are, in each layer (*) and both text stacks:\n")
        print("\n".join(f"  {line}" for line in tap_words.lines()))
    elif what == "faults":
        from conformance.defects import all as catalogue

        own = {fault.id: fault.title for fault in catalogue.FAULTS if fault.id not in DEFECTS}
        for defect, title in (DEFECTS | own).items():
            print(f"{defect}  {title}")
            if defect in SEEN:
                print(f"     seen in {SEEN[defect]}")
    elif what == "checkpoints":
        for name in BUNDLED:
            print(f"{name:13} bundled")
        for name, repo in HUB.items():
            print(f"{name:13} {repo}, or ${variable(name)}; --synthetic: seeded weights")
    else:
        print("\n".join([*names(), *plugins.names(), "", "Every name:"]))
        print("\n".join(f"  {form}\n      {what}" for form, what in FORMS.items()))
    return 0


def _cases(cases: Iterable[Case]) -> None:
    """Name, title and what each exposes, in 100 columns."""
    for case in cases:
        ids = textwrap.wrap(" ".join(case.exposes), 25)
        print("\n".join([f"{case.name:20} {case.title:52} {ids[0]}", *(f"{'':74}{more}" for more in ids[1:])]))
