"""Takes values where Keras calls its layers: `keras.layers.Layer.__call__` is wrapped, nothing inside a layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .keras_places import Places

Array = Any


class Watch:
    """Looks at the calls of some layers.

    Args:
        places: which layers, and how each is looked at; see `keras_places.Places`.

    Attributes:
        names: every tap that it can take.
    """

    def __init__(self, places: Places) -> None:
        import keras

        self._places, self._taken = places, dict[str, Array]()
        self._on = False
        self.names = list(dict.fromkeys(name for _, names in places.values() for name in names))
        layer, plain = keras.layers.Layer, keras.layers.Layer.__call__

        def seen(this: Any, *args: Any, **kwargs: Any) -> Any:
            out = plain(this, *args, **kwargs)
            if self._on and (place := self._places.get(id(this))):
                self._take(*place, args, kwargs, out)
            return out

        layer.__call__ = seen

    @contextmanager
    def watching(self) -> Iterator[dict[str, Array]]:
        """Take what is called in this block into the dict that it is given."""
        self._taken, self._on = {}, True
        try:
            yield self._taken
        finally:
            self._on = False

    def keep(self, name: str, value: Any) -> None:
        """Keep a value of the backend as float32; the first where there are several."""
        from keras import ops

        value = value[0] if isinstance(value, (tuple, list)) else value
        self._taken[name] = np.array(ops.convert_to_numpy(ops.cast(value, "float32")))

    def _take(self, how: str, names: tuple[str, ...], args: Any, kwargs: Any, out: Any) -> None:
        """Keep what this way of looking at a layer shows."""
        given = args[0] if args else kwargs.get("inputs")  # a decoder layer's is a pair, of which the first counts
        if how == "in turn":
            name = next((name for name in names if name not in self._taken), "")
            if name:
                self.keep(name, out)
        elif how == "mask":
            self.keep(names[0], kwargs["attention_mask"])
        else:
            self.keep(names[0], out)
            for name in names[1:]:
                self.keep(name, given)
