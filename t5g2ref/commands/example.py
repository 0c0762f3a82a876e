"""What `generate` and `atlas` answer where nothing is asked: a sum of two pictures, by the trained checkpoint."""

from __future__ import annotations

import argparse
import shlex
import sys

from t5g2ref.commands.folders import TRAINED, place

PROMPT = "add <start_of_image> <start_of_image>"
PICTURES = ("three.png", "five.png")


def filled(options: argparse.Namespace) -> argparse.Namespace:
    """The options; those of the trained checkpoint that ask nothing with an example, told on standard error."""
    if options.checkpoint != TRAINED or options.image or [options.prompt, options.ids, options.batch] != [None] * 3:
        return options
    images = [str(place(TRAINED) / "pictures" / name) for name in PICTURES]
    command = ["python", "-m", "t5g2ref", options.command, "--prompt", PROMPT]
    command += [word for image in images for word in ("--image", image)]
    print(f"t5g2ref: nothing is asked, so here is an example: {shlex.join(command)}", file=sys.stderr, flush=True)
    return argparse.Namespace(**{**vars(options), "prompt": PROMPT, "image": images})
