"""A client of a Dask scheduler. What does not work is said in one line, and within seconds."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from conformance.errors import Unavailable

REACH = 5.0  # seconds in which the scheduler has to answer


@contextmanager
def client_of(address: str) -> Iterator[Any]:
    """A client of the scheduler. What Dask has to say is said in a line by whoever finds that it does not work."""
    reach(address)
    import distributed

    with _silent():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Dask's own versions: ours are compared
            client = distributed.Client(address, timeout=REACH, set_as_default=False, name="conformance")
        try:
            yield client
        finally:
            with suppress(Exception):
                client.close(timeout=REACH)


@contextmanager
def _silent() -> Iterator[None]:
    """No log of Dask's: some of its loggers have a level of their own."""
    every = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
    before = {name: logging.getLogger(name).level for name in every}
    for name in every:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def reach(address: str) -> None:
    """Raises Unavailable unless a scheduler answers there. A client that finds none leaves much behind."""
    try:
        from distributed import Security, rpc
    except ImportError as error:
        what = f"--cluster needs {error.name}, which is not installed"
        raise Unavailable(f'{what}: pip install "t5g2ref[cluster]"') from error

    async def kind() -> Any:
        async with rpc(address, connection_args=Security().get_connection_args("client")) as there:
            return (await there.identity()).get("type")

    async def soon() -> Any:
        return await asyncio.wait_for(kind(), REACH)

    try:
        found = asyncio.run(soon())
        why = "" if found == "Scheduler" else f"a Dask {str(found).lower()} answers there, and no scheduler"
    except Exception as error:
        why = f"no Dask scheduler answers there ({str(error) or 'not in time'})"
    if why:
        raise Unavailable(f"--cluster {address}: {' '.join(why.split())}; start one with `dask scheduler`")
