"""CTranslate2, asked through its `Translator`. Weights go through its own T5Gemma 2 converter, from our arrays.

translate   `translate_batch` with the decoder's ids as a forced prefix: each position is one cached step, and gives
            logits of the whole vocabulary
score       `score_batch`: all positions at once, and gives the log-probability of each next id
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import wire

Array = Any
LACKS = ["images", "positions", "labels", "classes"]
LEFT = "CTranslate2 takes rows without padding: none can be padded on the left"


class Engine:
    """CTranslate2 on the CPU, in float32.

    Args:
        way: "translate" or "score".
    """

    def __init__(self, way: str) -> None:
        self._way = way
        self._translator: Any = None
        self._end = ""

    def open(self, config: dict[str, Any], weights: dict[str, Array], folder: Path) -> dict[str, Any]:
        import ctranslate2

        asked = settings(config)
        spec = converted(asked, weights)
        wire.refuse("ctranslate2", list(compared(asked, spec)))
        spec.validate()
        spec.optimize()
        (made := folder / "ctranslate2").mkdir(exist_ok=True)
        spec.save(str(made))
        threads = {"inter_threads": 1, "intra_threads": 1}
        self._translator = ctranslate2.Translator(str(made), device="cpu", compute_type="float32", **threads)
        self._end = spec.config.eos_token
        taps = ["logits"] if self._way == "translate" else ["log_probs", "log_prob_ids"]
        versions = {"ctranslate2": ctranslate2.__version__, "ctranslate2 computes in": self._translator.compute_type}
        lacks = LACKS if self._way == "translate" else ["cache", *LACKS]
        name, generates = ("ctranslate2", True) if self._way == "translate" else ("ctranslate2:score", False)
        self._begin, self._pad = str(config["decoder"]["bos_token_id"]), int(config["decoder"]["pad_token_id"])
        said = {"name": name, "dtype": "float32", "versions": versions, "taps": taps, "lacks": lacks}
        return said | {"generates": generates}

    def generate(self, prompt: wire.Prompt) -> dict[str, Array]:
        """`translate_batch` without a forced end: greedy, or beams, which are returned with their scores."""
        if "pixel_values" in prompt.inputs:
            raise wire.Skipped("CTranslate2 takes text alone")
        sources = rows(prompt.inputs["input_ids"], prompt.inputs.get("attention_mask"), anywhere=True)
        start = rows(prompt.inputs["start"], None) if "start" in prompt.inputs else [[self._begin]] * len(sources)
        results = self._translator.translate_batch(
            sources,
            target_prefix=start,
            beam_size=prompt.beams,
            num_hypotheses=prompt.beams,
            max_decoding_length=len(start[0]) - 1 + prompt.new,  # an answer does not show the first id
            min_decoding_length=0,
            max_input_length=0,
            end_token=[str(token) for token in prompt.stop] or None,
            return_end_token=True,
            return_scores=prompt.beams > 1,
            return_logits_vocab=prompt.beams == 1,
        )
        return self._answer(results, prompt, start)

    def _answer(self, results: list[Any], prompt: wire.Prompt, start: list[list[str]]) -> dict[str, Array]:
        """ids, padded behind each row's end; of one beam the logits that they come from, of several the scores."""
        begun, answers = len(start[0]), zip(start, results, strict=True)
        found = [[int(token) for token in (own[0], *ids)] for own, result in answers for ids in result.hypotheses]
        length = max(map(len, found))
        answer: dict[str, Array] = {"ids": np.full((len(found), length), self._pad, np.int64)}
        for row, ids in enumerate(found):
            answer["ids"][row, : len(ids)] = ids
        if prompt.beams > 1:
            answer["scores"] = np.array([score for result in results for score in result.scores], np.float32)
            return answer
        logits = [np.stack([np.asarray(step, np.float32) for step in result.logits[0]]) for result in results]
        answer["logits"] = np.zeros((len(found), length - begun, logits[0].shape[-1]), np.float32)
        for row, each in enumerate(logits):
            answer["logits"][row, : len(each) - begun + 1] = each[begun - 1 :]
        return answer

    def run(self, case: wire.Case) -> list[dict[str, Array]]:
        done = {number: self._of_run(run) for number, run in enumerate(case.runs)}
        return [
            {tap: wire.kept(array[:, first:last], case, number) for tap, array in done[number].items()}
            for number, first, last in case.calls
        ]

    def _of_run(self, run: dict[str, Any]) -> dict[str, Array]:
        """The arrays of a run, at all its decoder positions; zeros where there is padding."""
        sources = rows(run["input_ids"], run.get("attention_mask"))
        targets = rows(run["decoder_input_ids"], run.get("decoder_attention_mask"))
        shape = run["decoder_input_ids"].shape
        return (
            self._logits(sources, targets, shape) if self._way == "translate" else self._scores(sources, targets, shape)
        )

    def _logits(self, sources: list[list[str]], targets: list[list[str]], shape: tuple[int, int]) -> dict[str, Array]:
        results = self._translator.translate_batch(
            sources,
            target_prefix=targets,
            beam_size=1,
            max_decoding_length=shape[1],
            min_decoding_length=0,
            max_input_length=0,
            return_logits_vocab=True,
        )
        found = [np.concatenate([np.asarray(each, np.float32) for each in result.logits]) for result in results]
        out = np.zeros((*shape, found[0].shape[-1]), np.float32)
        for row, (logits, ids) in enumerate(zip(found, targets, strict=True)):
            out[row, : len(ids)] = logits[: len(ids)]
        return {"logits": out}

    def _scores(self, sources: list[list[str]], targets: list[list[str]], shape: tuple[int, int]) -> dict[str, Array]:
        """log p of each next id; of the end behind the last one."""
        results = self._translator.score_batch(sources, targets, max_input_length=0)
        log_probs, ids = np.zeros((*shape, 1), np.float32), np.zeros((*shape, 1), np.int64)
        for row, (result, given) in enumerate(zip(results, targets, strict=True)):
            ids[row, : len(given), 0] = [int(token) for token in [*given[1:], self._end]]
            log_probs[row, : len(given), 0] = result.log_probs
        return {"log_probs": log_probs, "log_prob_ids": ids}


def rows(ids: Array, mask: Array | None, *, anywhere: bool = False) -> list[list[str]]:
    """Each row's tokens without its padding. Raises Skipped where that stands on the left, unless it may be anywhere: a
    source's positions count from its first token then."""
    keep = np.ones(ids.shape, bool) if mask is None else mask.astype(bool)
    if not anywhere and (np.diff(keep.astype(np.int8), axis=1) > 0).any():
        raise wire.Skipped(LEFT)
    return [[str(token) for token in row[kept]] for row, kept in zip(ids, keep, strict=True)]


def settings(value: Any, name: str = "") -> Any:
    """config.json as an object, as the converter reads a configuration of transformers."""
    if isinstance(value, dict) and name != "rope_parameters":
        return SimpleNamespace(**{key: settings(item, key) for key, item in value.items()})
    return value


class Held(np.ndarray[Any, Any]):
    """An array with the two members of a torch tensor that the converter uses."""

    @property
    def data(self) -> Any:
        return self

    def float(self) -> Array:
        return np.asarray(self, np.float32)


def modules(weights: dict[str, Array]) -> Any:
    """The weights as a tree of modules, by their names."""
    top = SimpleNamespace()
    for name, array in weights.items():
        *path, last = name.split(".")
        node = top
        for part in path:
            node = vars(node).setdefault(part, SimpleNamespace())
        setattr(node, last, np.array(array, np.float32).view(Held))
    for stack in (top.encoder.text_model, top.decoder):
        stack.layers = [vars(stack.layers)[str(number)] for number in range(len(vars(stack.layers)))]
    return top


def converted(config: Any, weights: dict[str, Array]) -> Any:
    """The specification that CTranslate2's own converter makes of the weights. No torch, no transformers."""
    from ctranslate2.converters import transformers as converter

    if not hasattr(converter, "transformers"):  # it asks whether a layer is of this class
        converter.transformers = SimpleNamespace(Conv1D=type("Conv1D", (), {}))
    tree = modules(weights)
    table, width = tree.encoder.text_model.embed_tokens, config.decoder.hidden_size
    table.embed_scale = np.float32(width**0.5)
    tree.decoder.embed_tokens = SimpleNamespace(weight=table.weight, embed_scale=table.embed_scale)
    model = SimpleNamespace(config=config, model=tree, lm_head=SimpleNamespace())
    vocabulary = {str(token): token for token in range(config.decoder.vocab_size)}
    first = config.decoder.eos_token_id
    words = {"bos_token": config.decoder.bos_token_id, "eos_token": first[0] if isinstance(first, list) else first}
    tokens = SimpleNamespace(get_vocab=lambda: vocabulary, unk_token="0", **{n: str(i) for n, i in words.items()})
    spec = converter.T5Gemma2Loader()(model, tokens)
    spec.config.decoder_start_token = None  # the case's own ids begin the decoder's row
    return spec


def compared(config: Any, spec: Any) -> Any:
    """(setting, asked for, what the specification holds) of every setting that an engine may ignore."""
    epsilon = spec.config.layer_norm_epsilon
    for where, asked, built in (
        ("encoder", config.encoder.text_config, spec.encoder),
        ("decoder", config.decoder, spec.decoder),
    ):
        yield f"{where}.rms_norm_eps", asked.rms_norm_eps, epsilon
        attention = built.layer[0].self_attention
        scale = attention.queries_scale
        has = asked.head_dim if isinstance(scale, str) else float(scale) ** -2
        yield f"{where}.query_pre_attn_scalar", asked.query_pre_attn_scalar, has
        yield f"{where}.attn_logit_softcapping", asked.attn_logit_softcapping, None
        for kind, layer in dict(zip(asked.layer_types, built.layer, strict=True)).items():
            rope = asked.rope_parameters[kind]
            yield f"{where} rope theta of {kind}", rope["rope_theta"], float(layer.self_attention.rotary_base)
            yield f"{where} rope type of {kind}", wire.rope_type(rope), "linear"
            factor = rope.get("factor", 1.0)
            yield f"{where} rope factor of {kind}", factor, float(layer.self_attention.rotary_scaling_factor)
            window = asked.sliding_window if kind == "sliding_attention" else 0
            yield f"{where} window of {kind}", window, int(layer.self_attention.sliding_window)
    cap = spec.decoder.final_logit_softcapping
    yield (
        "decoder.final_logit_softcapping",
        config.decoder.final_logit_softcapping,
        None if isinstance(cap, str) else float(cap),
    )


def main(arguments: list[str]) -> None:
    wire.serve(Engine(arguments[0] if arguments else "translate"))
