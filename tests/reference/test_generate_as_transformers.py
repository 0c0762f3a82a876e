"""Greedy, sampled and beam generation against transformers' generate, on the bundled `tiny`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from generating import STEPS, common, pictured, ragged
from helpers import Array, close, generator

import t5g2ref
from conformance.cases.case import Case
from conformance.checkpoints import resolve
from t5g2ref.generate.beam import Searched, beam_search
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.hypotheses import Search
from t5g2ref.generate.rules import Rules, Sampling, narrowed, ruled
from t5g2ref.model import T5Gemma2
from t5g2ref.numerics import Numerics


@pytest.fixture(scope="module")
def theirs(peer_installed: None) -> Any:
    """transformers' own model of tiny, in float32 throughout."""
    from conformance.peers.torch.transformers import TransformersPeer

    peer = TransformersPeer("sdpa")
    peer.open(resolve("tiny", synthetic=False)[0])
    model = peer.model(Case("generate", "", ()))
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def ours() -> T5Gemma2:
    """The same float32 weights, computed in float64, √hidden in float32 as theirs."""
    target = resolve("tiny", synthetic=False)[0]
    weights = t5g2ref.params.tree(dict(target.rounded("float32").items()))
    return T5Gemma2(target.config, weights, Numerics(embed_dtype="float32"))


def asked(theirs: Any, ours: T5Gemma2, source: dict[str, Array], stop: tuple[int, ...], **how: Any) -> Any:
    import torch
    from transformers import GenerationConfig

    c = ours.config.decoder
    settings = GenerationConfig(
        eos_token_id=list(stop) or None,
        pad_token_id=c.pad_token_id,
        bos_token_id=c.bos_token_id,
        decoder_start_token_id=c.bos_token_id,
        output_scores=True,
        return_dict_in_generate=True,
        use_cache=True,
        **{"do_sample": False, **how},
    )
    inputs = {name: torch.tensor(value) for name, value in source.items()}
    with torch.no_grad():
        return theirs.generate(**inputs, generation_config=settings)


def beamed(
    theirs: Any, ours: T5Gemma2, source: dict[str, Array], stop: tuple[int, ...], search: Search, **how: Any
) -> tuple[Any, Searched]:
    """Both searches, with the same options."""
    names = {"rules": {}, **how}
    rules = names.pop("rules")
    out = asked(
        *(theirs, ours, source, stop),
        num_beams=search.beams,
        num_return_sequences=search.beams,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,
        **names,
        **rules,
    )
    return out, beam_search(ours, **source, search=search, stop=stop, rules=ruling(rules), **names)


def ruling(given: dict[str, Any]) -> Rules:
    """Rules from transformers' names."""
    renamed = {"no_repeat_ngram_size": "no_repeat_ngram", "bad_words_ids": "bad_words"}
    return Rules(**{renamed.get(name, name): value for name, value in given.items()})


def same(out: Any, found: Searched, pad: int) -> None:
    """Equal ids, theirs padded as far as ours, and scores as near as float32's sums come."""
    ids = out.sequences.numpy()
    longest = max(ids.shape[1], found.ids.shape[1])
    both = [np.pad(x, ((0, 0), (0, longest - x.shape[1])), constant_values=pad) for x in (ids, found.ids)]
    assert np.array_equal(*both)
    close(found.scores, out.sequences_scores.numpy().astype(np.float64), atol=1e-5, rtol=2e-6)


SEARCHES = [
    *(Search(2), Search(3, early_stopping=True), Search(4, early_stopping="never"), Search(5, 0.0, "never")),
    *(Search(3, 2.0), Search(3, 2.0, "never"), Search(3, -1.0), Search(4, -1.0, True), Search(3, 0.5, "never")),
]


@pytest.mark.parametrize("ended", [0, 1, 5])
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_as_transformers_searches(search: Search, ended: int, theirs: Any, ours: T5Gemma2) -> None:
    """Ragged sources past both windows; no end, one, or five, so that answers end at unlike steps."""
    seed = SEARCHES.index(search)
    source = ragged(ours, 40 + seed, (17, 4, 9))
    stop = common(ours, source, ended)
    out, found = beamed(theirs, ours, source, stop, search, max_new_tokens=24 if ended == 0 else STEPS)
    same(out, found, ours.config.decoder.pad_token_id)
    if ended == 5 and search.early_stopping is True:
        assert len(np.unique((found.log_probs != 0).sum(axis=1))) > 1


@pytest.mark.parametrize("seed", range(3))
def test_with_pictures(seed: int, theirs: Any, ours: T5Gemma2) -> None:
    source = pictured(ours, seed)
    stop = common(ours, source, seed)
    out, found = beamed(theirs, ours, source, stop, Search(3), max_new_tokens=STEPS)
    same(out, found, ours.config.decoder.pad_token_id)


RULES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[84], [70, 171]]},
    {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "bad_words_ids": [[66]]},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_with_rules_and_a_least_length(rules: dict[str, Any], theirs: Any, ours: T5Gemma2) -> None:
    """Rules act on log-probabilities, which are summed as they leave them."""
    source = ragged(ours, 60)
    how = {"max_new_tokens": STEPS, "min_new_tokens": 4, "rules": rules}
    out, found = beamed(theirs, ours, source, common(ours, source, 3), Search(3), **how)
    same(out, found, ours.config.decoder.pad_token_id)


def test_from_a_start(theirs: Any, ours: T5Gemma2) -> None:
    """Lengths count the new ids alone."""
    source = ragged(ours, 61) | {"decoder_input_ids": np.array([[33, 44, 70]] * 3)}
    out, found = beamed(theirs, ours, source, common(ours, source, 2), Search(3, 2.0), max_new_tokens=STEPS)
    same(out, found, ours.config.decoder.pad_token_id)


# Greedy


@pytest.mark.parametrize("seed", range(24))
def test_greedy(seed: int, theirs: Any, ours: T5Gemma2) -> None:
    """Ragged sources past both windows or with pictures, from a start or not, with rules and ends or not."""
    source = pictured(ours, seed) if seed % 4 == 3 else ragged(ours, seed, (17, 4, 9))
    rows, pad = len(source["input_ids"]), ours.config.decoder.pad_token_id
    if seed % 5 == 1:
        source = source | {"decoder_input_ids": np.array([[33, 44, 70]] * rows)}
    rules = RULES[seed % 4] if seed % 2 else {}
    stop = tuple(int(i) for i in greedy(ours, **source, max_new_tokens=20, stop=()).ids[:, 6]) if seed % 3 else ()
    names: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 3 * (seed % 6 == 4)}
    out = asked(theirs, ours, source, stop, **names, **rules)
    found = greedy(ours, **source, **names, stop=stop, rules=ruling(rules))
    assert np.array_equal(out.sequences.numpy(), found.ids)
    assert not stop or (found.ids[:, -1] == pad).any() or found.ids.shape[1] < 21


def starts(model: T5Gemma2, seed: int, rows: int, bos: bool) -> dict[str, Array]:
    """Starts of unlike lengths, padded in front, with bos in all of them or in none."""
    lengths = generator(f"starts {seed}").permutation(rows) + 1
    mask = (np.arange(rows) >= rows - lengths[:, None]).astype(int)
    ids = np.where(mask == 1, generator(f"ids {seed}").integers(40, 290, mask.shape), model.config.decoder.pad_token_id)
    if bos:
        ids[range(rows), rows - lengths] = model.config.decoder.bos_token_id
    return {"decoder_input_ids": ids, "decoder_attention_mask": mask}


@pytest.mark.parametrize("seed", range(8))
def test_starts_of_unlike_lengths(seed: int, theirs: Any, ours: T5Gemma2) -> None:
    """Greedy and beams, with rules, which count padding as they do in transformers, past the decoder's window."""
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__).release < (5, 3):
        pytest.skip("before 5.3 generate gives the decoder positions that leave padding out")
    source = ragged(ours, seed, (17, 4, 9)) | starts(ours, seed, 3, bos=seed % 2 == 0)
    rules = RULES[seed // 2] if seed > 1 else {}
    out = asked(theirs, ours, source, (), max_new_tokens=20, **rules)
    found = greedy(ours, **source, max_new_tokens=20, stop=(), rules=ruling(rules))
    assert np.array_equal(out.sequences.numpy(), found.ids)
    names = {"max_new_tokens": STEPS, "rules": rules}
    out, searched = beamed(theirs, ours, source, common(ours, source, 2), Search(3), **names)
    same(out, searched, ours.config.decoder.pad_token_id)


@pytest.mark.parametrize("seed", range(4))
def test_from_embeddings(seed: int, theirs: Any, ours: T5Gemma2) -> None:
    """With pictures or not, and at given positions; greedy and beams."""
    source = pictured(ours, seed) if seed % 2 else ragged(ours, seed)
    if seed > 1:
        source["position_ids"] = generator(f"p {seed}").integers(0, 60, source["input_ids"].shape)
    embeds = ours.with_numerics(Numerics("float32")).embed(source.pop("input_ids"))
    source["inputs_embeds"] = embeds
    out = asked(theirs, ours, source, (), max_new_tokens=STEPS)
    assert np.array_equal(out.sequences.numpy(), greedy(ours, **source, max_new_tokens=STEPS, stop=()).ids)
    out = asked(theirs, ours, source, (), max_new_tokens=STEPS, num_beams=3)
    found = beam_search(ours, None, Search(3), **source, max_new_tokens=STEPS, stop=())
    assert np.array_equal(out.sequences.numpy(), found.ids[::3])


# Sampling


@pytest.mark.parametrize("seed", range(6))
def test_sampling_narrows_as_transformers_does(seed: int, theirs: Any, ours: T5Gemma2) -> None:
    """Along the ids that transformers drew: at each step the same ids may be drawn, by the same logits."""
    import torch

    torch.manual_seed(seed)
    source = ragged(ours, 70 + seed)
    names = {"temperature": 1.6, "top_k": 40, "top_p": 0.9, "min_p": 0.05}
    given = dict(list(names.items())[: 2 + seed % 3]) | {"top_k": 40 if seed % 2 else 0}
    how = {"max_new_tokens": STEPS, "do_sample": True, **RULES[seed % 4], **given}
    out = asked(theirs, ours, source, (), **how)
    ids = out.sequences.numpy()
    whole = ours(source["input_ids"], ids[:, :-1], attention_mask=source["attention_mask"]).logits
    for step in range(STEPS):
        left = ruled(np, whole[:, step], ids[:, : 1 + step], ruling(RULES[seed % 4]))
        found, expected = narrowed(np, left, Sampling(**given)), out.scores[step].numpy().astype(np.float64)
        assert np.array_equal(found > -np.inf, expected > -np.inf)
        close(found[found > -np.inf], expected[found > -np.inf], atol=2e-5)
