"""tools/demo: what is trained is transformers' model, and t5g2ref reads what is written."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import ROOT

import t5g2ref

sys.path.append(str(ROOT / "tools" / "demo"))
pytest.importorskip("torch", reason="needs torch: the demo is trained with it")
pytest.importorskip("transformers", reason="needs transformers: its model is trained")
pytest.importorskip("tokenizers", reason="needs the tokenizers library")
batches, data, measure, network, pictures, settings, tokenizer = map(
    import_module, ("batches", "data", "measure", "network", "pictures", "settings", "tokenizer")
)
torch = import_module("torch")
pytestmark = pytest.mark.peer

DIGITS = pictures.Digits(np.random.default_rng(1).integers(0, 255, (20, 8, 8)).astype(np.uint8), np.arange(20) % 10)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    return network.fresh("cpu").eval()


def mixture() -> Any:
    words = tokenizer.trained()
    texts = {task: batches.Texts(words, data.examples(task, False, 1, 40), "cpu") for task in data.TEXT_TASKS}
    tasks = (*data.TEXT_TASKS, *data.PICTURE_TASKS)
    return batches.Mixture(tasks, texts, batches.Pictures(words, DIGITS, "cpu"), 24)


def test_the_loss_is_asked_of_transformers_own_forward(model: Any) -> None:
    torch.manual_seed(2)
    batch = mixture().drawn()
    with torch.no_grad():
        own = network.logits(model, batch)
        mask = (batch.ids != tokenizer.PAD).long()
        theirs = model(input_ids=batch.ids, attention_mask=mask, pixel_values=batch.pixels, labels=batch.labels).logits
    counts = batch.labels != batches.IGNORED
    assert counts.sum() > 100
    assert torch.allclose(own[counts], theirs[counts], atol=1e-5)


def test_every_weight_is_trained(model: Any) -> None:
    torch.manual_seed(3)
    network.loss(model, mixture().drawn()).backward()
    untouched = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    model.zero_grad()
    assert not untouched


def test_rounding_is_undone(model: Any) -> None:
    before = [weight.detach().clone() for weight in model.parameters()]
    with network.Rounding(model):
        assert all(torch.equal(weight, weight.bfloat16().float()) for weight in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_reference_reads_what_is_written(model: Any, tmp_path: Path) -> None:
    network.write(model, tmp_path)
    (tmp_path / "training.json").write_text(json.dumps({"seconds": 60}))
    assert t5g2ref.load(tmp_path).config.mm_tokens_per_image == settings.TOKENS_PER_IMAGE
    models = [measure.Reference(tmp_path), measure.Peer(tmp_path)]
    for task in (*data.PICTURE_TASKS, *data.TEXT_TASKS):
        found = measure.figure(task, measure.questions(task, DIGITS, 8, 1)[:8], tmp_path, models)
        assert found.same_ids == found.inputs == 8
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3_000_000
