"""Train the demo: about one million parameters that name and add pictures, say sums, dates and numbers, and denoise.

    python tools/demo/train.py --out FOLDER --minutes 8 --device cuda

Needs torch, transformers, tokenizers and safetensors; scikit-learn, or its pictures in a file (see pictures.py). The
folder can be used at any time: every minute the checkpoint is written there, and `state.pt`, which a second start with
the same arguments goes on from. `log.jsonl` has a line for each evaluation. Steps or minutes: what comes first ends it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import batches
import data
import network
import pictures
import tokenizer
import torch
import transformers

TASKS = (*data.TEXT_TASKS, *data.PICTURE_TASKS)
POOL = 300_000
HELD = 1000
WARMUP, ROUNDED = 0.03, 0.8  # parts of the training: until the rate is at its peak, and from when weights are rounded
KEEP_EVERY = 60.0  # seconds


def options() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; made where it is not there")
    parser.add_argument("--steps", type=int, default=10_000, help="at most so many (default: 10000)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most so many, evaluations included")
    parser.add_argument("--batch", type=int, default=1024, help="rows of a step (default: 1024)")
    parser.add_argument("--rate", type=float, default=2e-3, help="the peak learning rate (default: 0.002)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--digits", help="a file of pictures.keep, where there is no scikit-learn")
    parser.add_argument("--tasks", default=",".join(TASKS), help="train on some alone (default: all)")
    parser.add_argument("--pool", type=int, default=POOL, help="most examples of a text task (default: 300000)")
    parser.add_argument("--eval-every", type=int, default=500, help="steps (default: 500)")
    return parser.parse_args()


def prepared(chosen: argparse.Namespace) -> tuple[batches.Mixture, dict[str, batches.Batch]]:
    """What is trained on, and what is held out, both on the device."""
    words = tokenizer.trained()
    tasks = chosen.tasks.split(",")
    sides = pictures.split(pictures.load(chosen.digits))
    images = [batches.Pictures(words, side, chosen.device) for side in sides]
    texts: list[dict[str, batches.Texts]] = [{}, {}]
    for task in (task for task in tasks if task in data.TEXT_TASKS):
        for held, most in ((False, chosen.pool), (True, HELD)):
            found = data.examples(task, held, chosen.seed, most)
            texts[held][task] = batches.Texts(words, found, chosen.device)
            print(f"{task:10} {'held out' if held else 'training'} {len(found):7}", flush=True)
    pairs = pictures.pairs(sides[1], HELD, chosen.seed)
    measured = batches.measured(texts[1], images[1], pairs)
    return batches.Mixture(tasks, texts[0], images[0], chosen.batch), {task: measured[task] for task in tasks}


def optimiser(model: torch.nn.Module, chosen: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW; norms, biases and embeddings are not drawn to zero."""
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [weight for name, weight in weights if weight.ndim > 1 and "embed" not in name]
    others = [weight for name, weight in weights if weight.ndim < 2 or "embed" in name]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=chosen.rate, betas=(0.9, 0.98), fused=chosen.device.startswith("cuda"))


class Run:
    """One training: where it is, and how it is kept."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        torch.manual_seed(chosen.seed)
        torch.set_float32_matmul_precision("high")
        self.chosen, self.begun = chosen, time.monotonic()
        self.batches, self.held = prepared(chosen)
        self.model = network.fresh(chosen.device)
        self.adam = optimiser(self.model, chosen)
        self.step, self.before, self.kept = 0, 0.0, time.monotonic()
        chosen.out.mkdir(parents=True, exist_ok=True)
        if (state := chosen.out / "state.pt").exists():
            self._restore(torch.load(state, map_location=chosen.device, weights_only=True))

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.step, self.before = state["step"], state["seconds"]
        torch.manual_seed(self.chosen.seed + self.step)
        print(f"goes on from step {self.step}", flush=True)

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.begun

    def progress(self) -> float:
        """How much of the training is done, from 0 to 1, by steps or by minutes."""
        return min(1.0, max(self.step / self.chosen.steps, self.seconds() / (60 * self.chosen.minutes)))

    def said(self) -> dict[str, object]:
        """How the weights were made, for the model card."""
        cuda = self.chosen.device.startswith("cuda")
        return {
            **{name: getattr(self.chosen, name) for name in ("seed", "batch", "rate", "tasks")},
            "steps": self.step,
            "seconds": round(self.seconds()),
            "device": torch.cuda.get_device_name() if cuda else "CPU",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def keep(self) -> None:
        """Write the checkpoint and the state; a state is never half written."""
        network.write(self.model, self.chosen.out)
        (self.chosen.out / "training.json").write_text(json.dumps(self.said(), indent=2) + "\n", encoding="utf-8")
        state = {"model": self.model.state_dict(), "adam": self.adam.state_dict()}
        torch.save({**state, "step": self.step, "seconds": self.seconds()}, self.chosen.out / "state.part")
        os.replace(self.chosen.out / "state.part", self.chosen.out / "state.pt")
        self.kept = time.monotonic()

    def evaluate(self, loss: float) -> None:
        """Say what part of each held-out task is exact, with the weights rounded as they are written."""
        self.model.eval()
        with network.Rounding(self.model):
            right = {task: round(network.exact(self.model, batch), 4) for task, batch in self.held.items()}
        self.model.train()
        line = {"step": self.step, "seconds": round(self.seconds(), 1), "loss": round(loss, 4), **right}
        print(json.dumps(line), flush=True)
        with (self.chosen.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def train(self) -> None:
        """All steps, and then the last evaluation."""
        total, since = torch.zeros((), device=self.chosen.device), 0
        while (done := self.progress()) < 1:
            total, since = total + self.one(done), since + 1
            self.step += 1
            if self.step % self.chosen.eval_every == 0:
                self.evaluate(float(total) / since)
                total, since = torch.zeros_like(total), 0
            if time.monotonic() - self.kept > KEEP_EVERY:
                self.keep()
        if since:
            self.evaluate(float(total) / since)
        self.keep()

    def one(self, done: float) -> torch.Tensor:
        """One step; its loss, on the device."""
        rate = min(1, (done + 1e-3) / WARMUP) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        for group in self.adam.param_groups:
            group["lr"] = self.chosen.rate * rate
        batch = self.batches.drawn()
        if done > ROUNDED:
            with network.Rounding(self.model):
                loss = network.loss(self.model, batch)
                loss.backward()
        else:
            loss = network.loss(self.model, batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return loss.detach()


def main() -> None:
    run = Run(options())
    print(f"{sum(weight.numel() for weight in run.model.parameters()):,} parameters", flush=True)
    run.train()


if __name__ == "__main__":
    main()
