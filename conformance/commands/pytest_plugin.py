"""The pytest plugin: a fixture `conforms`, which is `testing.assert_conforms`, imported when it is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def conforms() -> Callable[..., None]:
    """`conforms(peer)` fails the test unless the verdict on the peer is CONFORMS; its options are those of
    `conformance.testing.assert_conforms`."""
    from conformance.testing import assert_conforms

    return assert_conforms
