"""The releases that are judged: of each package the versions, the peers that it gives, and the cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FEW = ("short", "window", "padded-left-cached", "decoder-split", "eoi-cached", "image")
"""Cases that a release is judged on where all of them would take hours: windows, padding, caches, pictures."""
SHORT = ("short", "window", "decoder-window")
SCORED = ("short", "window")
GENERATED = tuple(f"generate{kind}" for kind in ("", "-second", "-stop", "-beams", "-images", "-long"))
ENCODED = ("short", "window", "padded-right", "padded-left", "eoi")


@dataclass(frozen=True)
class Way:
    """One way of asking a package: a column of the table.

    Args:
        name: of the column.
        peer: for `--peer`; {python} stands for the interpreter of the environment.
        lane: for `--lane`.
        ckpt: for `--ckpt`.
        cases: their names.
    """

    name: str
    peer: str
    lane: str
    ckpt: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """A package, whose versions are rows of the table.

    Args:
        name: as pip installs it.
        versions: from the newest to the oldest.
        ways: how each version is asked.
        judges: whether the judge itself runs in the environment, since it imports the package.
        beside: what else its environment needs.
        report: what was found in it, to paste into its tracker; a page beside the table's. "" for none.
    """

    name: str
    versions: tuple[str, ...]
    ways: tuple[Way, ...]
    judges: bool = False
    beside: tuple[str, ...] = ()
    report: str = ""


TRANSFORMERS = (
    "5.24.0 5.23.0 5.22.2 5.21.1 5.20.2 5.19.0 5.18.0 5.17.0 5.16.1 5.15.1 5.14.1 5.13.1 "
    "5.12.1 5.11.0 5.10.4 5.9.0 5.8.1 5.7.0 5.6.2 5.5.4 5.4.0 5.3.0 5.2.0 5.1.0"
)
PACKAGES = {
    "transformers": Package(
        "transformers",
        tuple(TRANSFORMERS.split()),
        (
            Way("sdpa, fp32", "transformers:sdpa", "fp32", "tiny-even", FEW),
            Way("generate", "transformers:sdpa", "generate", "tiny-even", GENERATED),
            Way("generate, static cache", "transformers:sdpa-static", "generate", "tiny-even", GENERATED),
        ),
        judges=True,
        report="findings/transformers_t5gemma2_generate.md",
    ),
    "onnxruntime": Package(
        "onnxruntime",
        ("1.32.0",),
        (Way("eager graphs, fp32", "onnxruntime", "fp32", "tiny-even", FEW),),
        judges=True,
        beside=("onnx", "onnxscript"),
    ),
    "ctranslate2": Package(
        "ctranslate2",
        ("4.8.5", "4.8.4", "4.8.3", "4.8.2", "4.8.1", "4.8.0"),
        (
            Way("translate, fp32", "ctranslate2@{python}", "fp32", "tiny-released", SHORT),
            Way("score, fp32", "ctranslate2:score@{python}", "fp32", "tiny-released", SCORED),
        ),
        beside=("numpy",),
        report="findings/ctranslate2_t5gemma2.md",
    ),
    "keras-hub": Package(
        "keras-hub",
        ("0.32.0", "0.31.1", "0.30.0", "0.29.1", "0.28.0"),
        (Way("torch, fp32", "keras_hub:torch@{python}", "fp32", "tiny-released", FEW),),
        beside=("numpy", "torch>=2.8,<2.14"),
        report="findings/keras_hub_t5gemma2.md",
    ),
    "mlx-audio": Package(
        "mlx-audio",
        ("0.6.2", "0.6.1", "0.6.0", "0.5.9"),
        tuple(
            Way(f"{port}, {lane}", f"mlx_audio:{port}@{{python}}", lane, "tiny-encoder", ENCODED)
            for port in ("irodori", "breeze")
            for lane in ("fp32", "bf16")
        ),
        beside=("numpy", "mlx[cpu]"),
        report="findings/mlx_audio_t5gemma2.md",
    ),
}


@dataclass(frozen=True)
class Job:
    """One verdict to be had."""

    package: Package
    version: str
    way: Way

    @property
    def file(self) -> str:
        """The name of its verdict's file."""
        words = [self.package.name, self.version, *self.way.name.replace(",", "").split()]
        return "-".join(words) + ".json"


def jobs(names: list[str] | None = None) -> Iterator[Job]:
    """Every verdict of these packages, release by release; of all where none is named."""
    for name, package in PACKAGES.items():
        if not names or name in names:
            yield from (Job(package, version, way) for version in package.versions for way in package.ways)
