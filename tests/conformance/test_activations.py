"""A peer's activations: kept as they were given, in memory or in files, and gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers import normal, same_bits
from standin import FREE, Device
from strict_arrays import StrictArray

from conformance import activations as module
from conformance.activations import DEVICE_SHARE, LARGE_BYTES, Dump


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the files go, so that they can be counted."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_arrays_by_call_and_name() -> None:
    with Dump() as dump:
        assert dump.calls == 0
        for call in range(2):
            dump.new_call()
            dump.put("a", np.full(3, call))
        dump.put("b", np.arange(2))
        assert dump.calls == 2
        assert (dump.names(0), dump.names(1)) == (["a"], ["a", "b"])
        assert [int(dump.get(call, "a")[0]) for call in range(2)] == [0, 1]


def test_what_was_not_given_is_none() -> None:
    with Dump() as dump:
        assert dump.get(0, "a") is None
        dump.new_call()
        assert dump.get(0, "a") is None
        assert dump.get(1, "a") is None
        assert dump.get(99, "a") is None


def test_a_name_given_twice_is_refused() -> None:
    """Two values for one tap would leave the judge with whichever came last."""
    with Dump() as dump:
        dump.new_call()
        dump.put("layers.0", np.zeros(1))
        with pytest.raises(ValueError, match=r"tap layers\.0 was given twice in call 0"):
            dump.put("layers.0", np.zeros(1))
        dump.new_call()
        dump.put("layers.0", np.ones(1))  # another call is another value


def test_small_ones_stay_in_memory(temporary: Path) -> None:
    with Dump(memory_bytes=0) as dump:
        dump.new_call()
        value = np.zeros(LARGE_BYTES - 1, np.uint8)
        dump.put("a", value)
        assert dump.get(0, "a") is value
        assert not files(temporary)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16, "int64", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_spilled_arrays_come_back_to_the_bit(
    dtype: Any, order: Any, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 64)
    value = np.array(normal("spill", 3, 5, 7, scale=3.0), dtype=dtype, order=order)
    with Dump(memory_bytes=0) as dump:
        dump.new_call()
        dump.put("a", value)
        assert len(files(temporary)) == 1
        back = dump.get(0, "a")
        assert back is not None
        same_bits(back, value)
        assert not back.flags.writeable


def test_non_finite_values_survive(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what the judge looks for."""
    monkeypatch.setattr(module, "LARGE_BYTES", 1)
    value = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    with Dump(memory_bytes=0) as dump:
        dump.new_call()
        dump.put("a", value)
        assert files(temporary)
        assert np.asarray(dump.get(0, "a")).tobytes() == value.tobytes()


def test_only_what_is_above_the_budget_is_spilled(temporary: Path) -> None:
    value = np.zeros(LARGE_BYTES, np.uint8)
    with Dump(memory_bytes=2 * LARGE_BYTES) as dump:
        dump.new_call()
        counts = []
        for name in "abcd":
            dump.put(name, value)
            counts.append(len(files(temporary)))
        assert counts == [0, 0, 1, 2]
        assert all(np.array_equal(dump.get(0, name), value) for name in "abcd")  # type: ignore[arg-type]


@pytest.mark.parametrize("fails", [False, True])
def test_files_are_gone_afterwards(fails: bool, temporary: Path) -> None:
    def use() -> None:
        with Dump(memory_bytes=0) as dump:
            dump.new_call()
            dump.put("a", np.zeros(LARGE_BYTES, np.uint8))
            assert files(temporary)
            if fails:
                raise RuntimeError("on the way")

    if fails:
        with pytest.raises(RuntimeError, match="on the way"):
            use()
    else:
        use()
    assert not list(temporary.iterdir())


def test_two_dumps_do_not_share_files(temporary: Path) -> None:
    large = np.arange(LARGE_BYTES // 8)
    with Dump(memory_bytes=0) as first, Dump(memory_bytes=0) as second:
        for dump, value in ((first, large), (second, -large)):
            dump.new_call()
            dump.put("a", value)
        same_bits(first.get(0, "a"), large)
        same_bits(second.get(0, "a"), -large)
        assert len(files(temporary)) == 2


# Arrays on a device


def test_a_judge_on_the_host_takes_them_down(devices: None) -> None:
    device, value = Device(), normal("down", 3, 4, dtype="float32")
    with Dump() as dump:
        dump.new_call()
        dump.put("a", device.xp.asarray(value))
        assert device.xp.waits, "it has left the device when `put` is over"
        found = dump.get(0, "a")
        assert type(found) is np.ndarray
        same_bits(found, value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_a_judge_on_the_device_holds_them_there(dtype: str, devices: None) -> None:
    device, kind = Device(), {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    value = device.xp.asarray(normal("up", 3, 4).astype(kind))
    with Dump(device) as dump:
        dump.new_call()
        dump.put("a", value)
        assert dump.get(0, "a") is value
        assert not device.xp.waits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_host_s_arrays_are_given_to_a_device(
    memory: int,
    dtype: str,
    devices: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From memory and from a file; as often as they are asked for."""
    monkeypatch.setattr(module, "LARGE_BYTES", 1)
    device, value = Device(), normal("given", 3, 4).astype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
    with Dump(device, memory_bytes=memory) as dump:
        dump.new_call()
        dump.put("a", value)
        for _ in range(2):
            found = dump.get(0, "a")
            assert isinstance(found, StrictArray)
            same_bits(device.host(found), value)


def test_what_the_device_has_no_room_for_goes_to_the_host(
    temporary: Path,
    devices: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And from there to files; nothing is lost or changed, and the judge sees it on the device all the same."""
    monkeypatch.setattr(module, "LARGE_BYTES", 64)
    device, values = Device(), [normal(f"room {i}", 4, 4) for i in range(5)]  # 128 bytes each
    with Dump(device, memory_bytes=256, device_bytes=200) as dump:
        dump.new_call()
        for i, value in enumerate(values):
            dump.put(f"{i}", device.xp.asarray(value))
        assert len(device.xp.waits) == 4, "one stays"
        assert len(files(temporary)) == 2
        for i, value in enumerate(values):
            found = dump.get(0, f"{i}")
            assert isinstance(found, StrictArray)
            same_bits(device.host(found), value)


def test_the_device_s_share(devices: None) -> None:
    device = Device()
    with Dump(device) as dump:
        dump.new_call()
        for i in range(DEVICE_SHARE):
            dump.put(f"{i}", device.xp.asarray(np.zeros(FREE // DEVICE_SHARE, np.uint8)[: 1 << 20]))
        assert not device.xp.waits
    with Dump(device, device_bytes=0) as dump:
        dump.new_call()
        dump.put("a", device.xp.asarray(np.zeros(1, np.uint8)))
        assert device.xp.waits
