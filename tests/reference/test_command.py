"""The t5g2ref command: what it prints, and what it says where it cannot."""

from __future__ import annotations

import pytest
from processes import python

import t5g2ref
from t5g2ref import command_line as command
from t5g2ref import params, taps
from t5g2ref.config import PRESETS, Config
from t5g2ref.generate.greedy import greedy
from t5g2ref.model import T5Gemma2


@pytest.fixture(scope="module")
def model() -> T5Gemma2:
    return t5g2ref.load(t5g2ref.bundled("tiny"))


# The command


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = command.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_describe_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "describe", "tiny")
    assert (status, err) == (0, "")
    for part in (
        "231 tensors in bfloat16, all in place",
        "453,916 parameters, vocabulary 311",
        "encoder  5 layers sFssF, width 48, 12 heads on 6 kv of 14, ffn 88",
        "window 9, theta 777 / 31000, factor 2.5, positions to 4096",
        "decoder  7 layers ssFssFs, width 48, 8 heads on 2 kv of 10, ffn 104",
        "window 18, theta 1234 / 52000, factor 3.5, positions to 3000",
        "vision   4 layers, width 44, 11 heads, ffn 56",
        "106 px in patches of 13 -> 16 tokens",
        "pad 31, bos 33, eos 37, boi 298, eoi 301, image 307",
    ):
        assert part in out
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize("size", PRESETS)
def test_describe_a_geometry(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "describe", size)
    assert status == 0
    assert out.startswith(f"{size}: a geometry (no weights)\n")
    assert f"{params.count(PRESETS[size]):,} parameters, vocabulary 262144" in out


def test_describe_lists_parameters_and_taps(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config.load(t5g2ref.bundled("tiny-even"))
    status, out, _ = call(capsys, "describe", "tiny-even", "--taps", "--params")
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    for name, shape in params.shapes(config).items():
        assert [name, *" x ".join(map(str, shape)).split()] in rows
    for tap in taps.table(config, loss=True):
        assert [tap.name, *tap.shape.split()] in rows
    plain = call(capsys, "describe", "tiny-even")[1]
    assert len(rows) == len(plain.splitlines()) + len(params.shapes(config)) + len(taps.table(config, loss=True))


def test_generate_prints_the_ids(model: T5Gemma2, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--ids", "5,17,42", "--dtype", "float64", "--max-new-tokens", "6")
    status, out, err = call(capsys, "generate", "tiny", *arguments)
    assert (status, err) == (0, "")
    assert [int(i) for i in out.split()] == greedy(model, [[5, 17, 42]], max_new_tokens=6).ids[0, 1:].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "nowhere"], "nowhere: no such folder, and not a name I know; give demo, tiny, "),
        (["generate", "tiny"], "give one of --prompt TEXT, --ids 5,17,42 and --batch FILE"),
        (
            ["generate", "tiny", "--ids", "5", "--prompt", "x"],
            "give one of --prompt TEXT, --ids 5,17,42 and --batch FILE",
        ),
        (["generate", "tiny", "--ids", "5,x"], "--ids: expected integers between commas, found 'x'"),
        (["generate", "tiny", "--ids", ""], "--ids: expected integers between commas, found ''"),
        (["generate", "tiny", "--ids", "5,9999"], "input_ids: ids must lie in [0, 311), found 9999"),
        (["generate", "tiny", "--ids", "-1"], "input_ids: ids must lie in [0, 311), found -1"),
        (["generate", "tiny", "--ids", "5", "--max-new-tokens", "0"], "max_new_tokens: expected at least 1, found 0"),
        (["generate", "tiny", "--prompt", "hello"], "there is no tokenizer.json, which --prompt needs"),
        (["generate", "nowhere", "--ids", "5"], "nowhere: no such folder"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("t5g2ref: ")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["sing"], ["describe"], ["generate", "tiny", "--dtype", "int8"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m t5g2ref")


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), (["describe", "270m"], 0), (["describe", "nowhere"], 2)]
)
def test_as_a_process(arguments: list[str], status: int) -> None:
    done = python("-m", "t5g2ref", *arguments)
    assert done.returncode == status
    assert bool(done.stdout) == (status == 0)
    assert "Traceback" not in done.stderr
