"""Write tests/reference/goldens/transformers.safetensors: what transformers computes on the bundled checkpoints.

    python tools/make_goldens.py

With these the model's tests have an outside opinion where torch is not installed. The expected values come from
transformers alone; the file says which version made it, and the test refuses a file of another format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from conformance.activations import Dump
from conformance.cases import catalogue as cases
from conformance.checkpoints import resolve
from conformance.peers import find as peers
from t5g2ref.files import replacing

MAGIC, FORMAT = "t5g2ref-goldens", "1"
TAPS = ("encoder.text_model.norm", "encoder.multi_modal_projector.projected", "decoder.norm", "logits", "loss")
FOLDER = Path(__file__).parent.parent / "tests" / "reference" / "goldens"


def collect() -> tuple[dict[str, Any], dict[str, str]]:
    """{"target/case/call/tap": float32 array} and the versions that made them."""
    peer, arrays = peers.create("transformers:eager"), {}
    for target in resolve("tiny", synthetic=False):
        peer.open(target)
        for case in cases.build(target.config):
            with Dump() as dump:
                peer.run(case, dump)
                for call in range(dump.calls):
                    for tap in set(TAPS) & set(dump.names(call)):
                        arrays[f"{target.name}/{case.name}/{call}/{tap}"] = np.array(dump.get(call, tap))
    return arrays, peer.versions()


def main() -> None:
    arrays, versions = collect()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "transformers.safetensors"
    hint = {"magic": MAGIC, "format": FORMAT, "regenerate": "python tools/make_goldens.py"}
    with replacing(path) as made:
        save_file(dict(sorted(arrays.items())), made, metadata=hint | versions)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
