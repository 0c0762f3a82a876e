"""A replay: what a server answered, as a file of prompts, ids and log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from helpers import generator

pytest.importorskip("rich", reason="needs rich: conformance reports with it")

from conformance.__main__ import main
from conformance.activations import Dump
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from conformance.commands import run
from conformance.defects.all import FAULTS
from conformance.defects.injection import HEALTHY
from conformance.errors import UsageError
from conformance.exchange.replay import read
from conformance.judge.together import TOGETHER
from conformance.peers.protocol import Peer
from conformance.peers.replay import AT_ONCE, cases
from conformance.selftest.faulty_peer import FaultyPeer
from conformance.target import Target
from t5g2ref.numerics import EAGER

pytestmark = pytest.mark.slow  # minutes in all

LENGTHS = ((40, 12), (9, 30), (61, 9), (23, 2 * AT_ONCE + 5))
ONE = {"prompt_ids": [5, 6, 7], "output_ids": [8, 9], "log_probs": [-1.0, -2.0]}
TEN = ("D03", "D16", "D20", "D24 in k_norm", "D30", "D32", "D35", "D46", "D01", "D09")

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny", synthetic=False)[0]


def prompts() -> list[dict[str, Any]]:
    """Ids of text, without their log-probabilities: prompts within and beyond the window, answers of several calls."""
    rng = generator("replay")
    sizes = [{"prompt_ids": s, "output_ids": t} for s, t in LENGTHS]
    return [{name: rng.integers(40, 200, size).tolist() for name, size in row.items()} for row in sizes]


def lines_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def served(peer: Peer, target: Target, path: Path, top: int, temperature: float = 1.0) -> Path:
    """The file that a server would give that computes as the peer does."""
    rows = prompts()
    unscored = lines_of(path, [row | {"log_probs": [-1.0] * len(row["output_ids"])} for row in rows])
    peer.open(target)
    for row, case in zip(rows, cases(read(unscored), target.config), strict=True):
        row |= _scored(_logits(peer, target, case) / temperature, row["output_ids"], top)
    return lines_of(path, rows)


def _logits(peer: Peer, target: Target, case: Case) -> np.ndarray[Any, Any]:
    with Dump(target.backend) as dump:
        peer.run(case, dump)
        calls = [np.asarray(dump.get(call, "logits"), np.float64) for call in range(len(case.calls))]
    return np.concatenate(calls, axis=1)[0]


def _scored(logits: np.ndarray[Any, Any], output: list[int], top: int) -> dict[str, Any]:
    found = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    found = np.minimum(found, 0)
    scored: dict[str, Any] = {"log_probs": [float(row[token]) for row, token in zip(found, output, strict=True)]}
    if top:
        best = np.argsort(-found, axis=1)[:, :top]
        scored |= {"top_ids": best.tolist(), "top_log_probs": np.take_along_axis(found, best, axis=1).tolist()}
    return scored


def judged(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str]]:
    status = main(["replay", str(path), "--no-progress", *options])
    return status, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("top", [0, 5])
@pytest.mark.parametrize(("lane", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_right_server_conforms(
    lane: str, dtype: Any, top: int, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = FaultyPeer(HEALTHY, target.backend, dtype, EAGER)
    path = served(cast(Any, peer), target, tmp_path / "replay.jsonl", top)
    status, lines = judged(path, capsys, "--lane", lane)
    assert lines[-1] == "VERDICT: CONFORMS on log-probabilities alone"
    assert status == 0
    tokens = sum(size for _, size in LENGTHS)
    assert any(f"the largest |Δ log p| of {tokens} tokens" in line.replace("\n", " ") for line in joined(lines))
    assert any("what these prompts reach is not known" in line for line in lines)


def joined(lines: list[str]) -> list[str]:
    """Every line with the next behind it, since long ones are wrapped."""
    return [" ".join(f"{a} {b}".split()) for a, b in zip(lines, [*lines[1:], ""], strict=True)]


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_in_bfloat16_conforms(
    attention: str, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conformance.peers.find import create

    peer = create(f"transformers:{attention}:bfloat16:cpu")
    path = served(peer, target, tmp_path / "replay.jsonl", 5)
    peer.close()
    status, lines = judged(path, capsys)
    assert (status, lines[-1]) == (0, "VERDICT: CONFORMS on log-probabilities alone")


@pytest.mark.parametrize("key", TEN)
def test_a_wrong_server_deviates(key: str, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = next(f for f in FAULTS if f.key.startswith(key))
    peer = FaultyPeer(fault.inject, target.backend, "bfloat16")
    status, lines = judged(served(cast(Any, peer), target, tmp_path / "replay.jsonl", 5), capsys)
    assert status == 1
    assert lines[-1].startswith("VERDICT: DEVIATES on log-probabilities alone at logits")
    assert any(f"computes T5Gemma 2 with {fault.id}" in line or f"or else with {fault.id}" in line for line in lines)


@pytest.mark.parametrize("temperature", [0.9, 1.1])
def test_a_temperature_is_seen_over_all_tokens(
    temperature: float, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No token is out of what rounding may do. All together are."""
    peer = FaultyPeer(HEALTHY, target.backend, "bfloat16")
    path = served(cast(Any, peer), target, tmp_path / "replay.jsonl", 5, temperature)
    status, lines = judged(path, capsys)
    assert status == 1
    assert any("|Δ log p| is" in line and "times a legal run's" in line for line in joined(lines))


def test_one_wrong_number_is_placed(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "diagnoses", lambda *_: [])  # none fits, which takes long to find out
    peer = FaultyPeer(HEALTHY, target.backend, "float32")
    path = served(cast(Any, peer), target, tmp_path / "replay.jsonl", 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["log_probs"][4] -= 0.01
    status, lines = judged(lines_of(path, rows), capsys, "--lane", "fp32")
    assert status == 1
    assert "case line 3, tiny" in lines[-1]
    assert any("at token (0, 4)" in line for line in lines)


def test_the_lines_make_the_cases(target: Target, tmp_path: Path) -> None:
    path = lines_of(tmp_path / "x.jsonl", [ONE, {**ONE, "name": "second"}])
    first, second = cases(read(path), target.config)
    assert (first.name, second.name) == ("line 1", "second")
    (run,) = first.runs
    assert run.input_ids.tolist() == [[5, 6, 7]]
    assert run.decoder_input_ids.tolist() == [[target.config.decoder.bos_token_id, 8]]
    assert run.splits is None


def test_the_best_beside_the_own(tmp_path: Path) -> None:
    """As many in each row: where the own id is not among the best, the last of them is left out."""
    tops = {"top_ids": [[8, 1], [2, 1]], "top_log_probs": [[-1.0, -1.5], [-0.5, -0.7]]}
    (line,) = read(lines_of(tmp_path / "x.jsonl", [ONE | tops]))
    assert line.ids.tolist() == [[8, 1], [9, 2]]
    assert line.log_probs.tolist() == [[-1.0, -1.5], [-2.0, -0.5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 lines, expected 1 to 10000"),
        ("{", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ("[1]", "line 1: is [1], expected an object with prompt_ids, output_ids, log_probs"),
        ({"prompt": [1]}, "line 1: has 'prompt', expected prompt_ids"),
        ({"prompt_ids": [1.5]}, "prompt_ids[0] is 1.5, expected a token id"),
        ({"prompt_ids": [True]}, "prompt_ids[0] is True, expected a token id"),
        ({"prompt_ids": [-1]}, "prompt_ids[0] is -1, expected a token id"),
        ({"prompt_ids": []}, "prompt_ids is [], expected a list of 1 to"),
        ({"output_ids": None}, "output_ids is None, expected a list of 1 to"),
        ({"log_probs": [-1]}, "log_probs is a list of 1, expected 2 log-probabilities"),
        ({"log_probs": [-1, 0.5]}, "log_probs[1] is 0.5, expected a finite number of nats, at most 0"),
        ({"log_probs": [-1, float("nan")]}, "log_probs[1] is nan, expected a finite number"),
        ({"log_probs": [-1, float("-inf")]}, "log_probs[1] is -inf, expected a finite number"),
        ({"log_probs": [-1, "x"]}, "log_probs[1] is 'x', expected a finite number"),
        ({"top_ids": [[1], [2]]}, "top_log_probs is None, expected 2 lists"),
        ({"top_ids": [[1]], "top_log_probs": [[-1]]}, "top_ids is [[1]], expected 2 lists"),
        ({"top_ids": [[1, 1], [2, 3]], "top_log_probs": [[-1, -1], [-1, -1]]}, "top_ids[0] has an id twice"),
        ({"top_ids": [[8], [2]], "top_log_probs": [[-1.5], [-1]]}, "id 8 has -1.0 in log_probs and -1.5 in top"),
        ({"name": ""}, "name is '', expected 1 to 64 printable characters"),
        ({"name": TOGETHER}, "name is 'together', which a report's own row is called; choose another"),
        ({"name": "a\u001b[0m"}, "expected 1 to 64 printable characters"),
    ],
)
def test_what_is_no_replay(text: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text if isinstance(text, str) else json.dumps(ONE | text))
    with pytest.raises(UsageError) as refused:
        read(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert len(str(refused.value)) < len(str(path)) + 200


def test_a_name_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2: name 'a' stands twice"):
        read(lines_of(tmp_path / "x.jsonl", [ONE | {"name": "a"}] * 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": [1 << 30]}, "prompt_ids has id 1073741824, expected ids below the vocabulary's"),
        ({"output_ids": [1, 1 << 30]}, "output_ids has id 1073741824"),
    ],
)
def test_ids_that_the_checkpoint_has_not(change: dict[str, Any], message: str, target: Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        cases(read(lines_of(tmp_path / "x.jsonl", [ONE | change])), target.config)


def test_pictures_are_refused(target: Target, tmp_path: Path) -> None:
    path = lines_of(tmp_path / "x.jsonl", [ONE | {"prompt_ids": [target.config.image_token_index]}])
    with pytest.raises(UsageError, match="has the image token, expected text: a replay holds no picture"):
        cases(read(path), target.config)


def test_probabilities_above_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tops = {"top_ids": [[8, 1], [9, 1]], "top_log_probs": [[-0.1, -0.2], [-2.0, -0.7]]}
    row = ONE | {"log_probs": [-0.1, -2.0]} | tops
    status, lines = judged(lines_of(tmp_path / "x.jsonl", [row]), capsys, "--lane", "fp32")
    assert status == 1
    assert any("its probabilities add up to" in line and "expected at most 1" in line for line in joined(lines))


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err.startswith(f"conformance: {tmp_path / 'none.jsonl'}: cannot be read: No such file")
