"""A checkpoint by its name: each place in its turn, and from a Hub on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finding import FIRST, WHOLE, Describe, cache, environment, refused
from processes import python
from small_hub import COMMIT, REPO, Hub, files_of, serving

import t5g2ref
from t5g2ref.checkpoint.find import SIZES, NotFound, find, variable
from t5g2ref.checkpoint.folder import load
from t5g2ref.config import Config


@pytest.fixture(autouse=True)
def nothing_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in SIZES:
        monkeypatch.delenv(variable(size), raising=False)


# On this disk


def test_a_folder_and_its_file_are_the_same() -> None:
    folder = t5g2ref.bundled("tiny")
    assert find(str(folder)).place == find(str(folder / "model.safetensors")).place == folder


def test_a_file_of_another_name(tmp_path: Path) -> None:
    folder = t5g2ref.bundled("tiny")
    shutil.copy(folder / "config.json", tmp_path)
    file = Path(shutil.copy(folder / "model.safetensors", tmp_path / "step-900.safetensors"))
    shutil.copy(t5g2ref.bundled("tiny-even") / "model.safetensors", tmp_path)  # which the folder would mean
    assert find(str(file)).place == file
    assert load(file)[0] == Config.load(folder)
    done = python("-m", "t5g2ref", "generate", str(file), "--ids", "5", "--max-new-tokens", "2")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_without_a_configuration(tmp_path: Path) -> None:
    file = Path(shutil.copy(t5g2ref.bundled("tiny") / "model.safetensors", tmp_path))
    with pytest.raises(NotFound, match=r"there is no config.json beside it; put it there"):
        find(str(file))


def test_a_shard_is_refused(sharded: Path) -> None:
    with pytest.raises(NotFound, match="one shard of several; give its folder"):
        find(str(sharded / FIRST))


def test_a_file_that_holds_no_weights() -> None:
    with pytest.raises(NotFound, match=r"this is a file, expected a folder or a .safetensors file"):
        find(str(t5g2ref.bundled("tiny") / "config.json"))


@pytest.mark.parametrize("where", ["folder", "file"])
def test_the_variable_of_a_size(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = t5g2ref.bundled("tiny")
    monkeypatch.setenv("T5G2REF_270M", str(folder if where == "folder" else folder / "model.safetensors"))
    assert find("270m").place == folder


@pytest.mark.parametrize(
    "name", ["nowhere", "a/b/c", "../x", "a/b@", "a/..", "a/b@../../x", "a/b@x y", "é/b", "n" * 5000, "a\0b"]
)
def test_what_is_no_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # beside which nothing is called x
    with pytest.raises(NotFound, match="no such folder, and not a name I know; give 270m, "):
        find(name)


# From the Hub


def test_downloaded_then_found_without_a_network(describe: Describe, hub: Hub, tmp_path: Path) -> None:
    done = describe()
    assert done.returncode == 0, done.stderr
    assert WHOLE in done.stdout
    assert COMMIT in done.stdout
    assert f"t5g2ref: {FIRST}: " in done.stderr
    assert not hub.gets("README.md")
    assert not (cache(tmp_path) / "snapshots" / COMMIT / "README.md").exists()
    hub.asked.clear()
    again = describe(HF_HUB_OFFLINE="1")
    assert (again.stdout, again.stderr) == (done.stdout, "")
    assert describe().stdout == done.stdout
    assert hub.asked == []


def test_huggingface_hub_finds_what_was_downloaded(describe: Describe, hub: Hub, tmp_path: Path) -> None:
    """The cache is the library's own: it takes the files for its own, and asks for none of them again."""
    assert describe().returncode == 0
    hub.asked.clear()
    code = f"from huggingface_hub import snapshot_download as s; print(s({REPO!r}, local_files_only=True))"
    done = python("-c", code, env=environment(hub, tmp_path / "home"))
    assert done.stdout.strip() == str(cache(tmp_path) / "snapshots" / COMMIT)
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision(revision: str, describe: Describe, hub: Hub) -> None:
    assert WHOLE in describe(f"{REPO}@{revision}").stdout
    assert any(path.endswith(f"/revision/{revision}") for _, path, _ in hub.asked)
    refused(describe(HF_HUB_OFFLINE="1"), "not in the cache")  # main is another name


def test_a_single_file(describe: Describe, hub: Hub) -> None:
    hub.files = files_of(t5g2ref.bundled("tiny"))
    assert WHOLE in describe().stdout


def test_generate_takes_it_too(hub: Hub, tmp_path: Path) -> None:
    arguments = ("--ids", "5,17", "--max-new-tokens", "3")
    given = environment(hub, tmp_path / "home")
    done = python("-W", "error", "-m", "t5g2ref", "generate", REPO, *arguments, env=given)
    assert done.stdout == python("-m", "t5g2ref", "generate", "tiny", *arguments).stdout


def test_a_text_needs_the_tokenizer_that_the_cache_lacks(describe: Describe, hub: Hub, tmp_path: Path) -> None:
    """A snapshot that the suite alone asked for may have none. What `--prompt` needs is had, of the same commit."""
    hub.files = files_of(t5g2ref.bundled("demo"))
    assert describe().returncode == 0
    tokenizer = cache(tmp_path) / "snapshots" / COMMIT / "tokenizer.json"
    tokenizer.resolve().unlink()
    tokenizer.unlink()
    asked = ("-m", "t5g2ref", "generate", REPO, "--prompt", "add forty-seven and thirty-eight")
    refused(
        python(*asked, env=environment(hub, tmp_path / "home", HF_HUB_OFFLINE="1")),
        f"tokenizer.json of {REPO} is not here (no such folder; the cache lacks tokenizer.json; ",
    )
    hub.asked.clear()
    done = python(*asked, env=environment(hub, tmp_path / "home"))
    assert (done.returncode, done.stdout) == (0, "eighty-five\n"), done.stderr
    assert hub.gets("tokenizer.json")
    assert not hub.gets("model.safetensors")
    again = python(*asked, env=environment(hub, tmp_path / "home", HF_HUB_OFFLINE="1"))
    assert again.stdout == done.stdout


def test_options_are_looked_at_before_a_download(hub: Hub, tmp_path: Path) -> None:
    done = python("-m", "t5g2ref", "generate", REPO, env=environment(hub, tmp_path / "home"))
    refused(done, "give one of --prompt TEXT")
    assert hub.asked == []


# What the Hub refuses


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (403, "GatedRepo", "Access to model is restricted"),
            ("gated: its licence is not accepted", f"/{REPO}, then: hf auth login"),
        ),
        ((401, "RepoNotFound", ""), ("no such repository, or a private one", "hf auth login")),
        ((404, "RepoNotFound", ""), ("no such repository, or a private one",)),
        ((401, "", "Invalid credentials in Authorization header"), ("the Hub refuses the token", "unset HF_TOKEN")),
        ((403, "", "Forbidden"), ("the token has no right to it",)),
        ((403, "", "Access to this resource is disabled."), ("the Hub has disabled it",)),
        ((503, "", "down"), ("the Hub answers 503", "give the command again")),
    ],
)
def test_refusals(answer: tuple[int, str, str], words: tuple[str, ...], describe: Describe, hub: Hub) -> None:
    hub.refuse = answer
    refused(describe(HF_TOKEN="hf_" + "x" * 20), f"t5g2ref: {REPO}: the weights of {REPO} are not here", *words)


def test_missing_revision(describe: Describe) -> None:
    refused(describe(f"{REPO}@v7"), "the Hub has no revision 'v7' of it", f"{REPO}/commits/main")


def test_the_token_goes_to_the_hub(describe: Describe, hub: Hub) -> None:
    assert describe(HF_TOKEN="hf_abc").returncode == 0
    assert hub.tokens == {"Bearer hf_abc"}


def test_the_token_goes_nowhere_else(describe: Describe, hub: Hub) -> None:
    """Large files come from a store of another name, which the Hub leads to."""
    with serving(Hub(hub.files, cuts={FIRST: [100_000]})) as store:
        hub.store = store.endpoint
        assert describe(HF_TOKEN="hf_abc").returncode == 0
    assert (hub.tokens, store.tokens) == ({"Bearer hf_abc"}, {""})
    assert store.gets(FIRST) == ["", "bytes=100000-"]


def test_a_repository_of_something_else(describe: Describe, hub: Hub) -> None:
    del hub.files["model.safetensors.index.json"]
    refused(describe(), "it has neither model.safetensors nor model.safetensors.index.json")
    hub.files = {"README.md": b"nothing"}
    refused(describe(), "the Hub lists no config.json for it")


def test_a_shard_that_the_repository_lacks(describe: Describe, hub: Hub) -> None:
    del hub.files[FIRST]
    refused(describe(), f"model.safetensors.index.json names {FIRST}, which the repository lacks")


# The suite finds it in the same way


def test_the_suite_says_which_commit(hub: Hub, tmp_path: Path) -> None:
    code = (
        "from conformance.checkpoints import resolve\n"
        f"(target,) = resolve({REPO!r}, synthetic=False); print(target.name, target.folder, *target.notes, sep='\\n')"
    )
    done = python("-W", "error", "-c", code, env=environment(hub, tmp_path / "home"))
    folder = cache(tmp_path) / "snapshots" / COMMIT
    assert done.stdout.splitlines() == [REPO, str(folder), f"weights: {REPO} at commit {COMMIT}"], done.stderr
