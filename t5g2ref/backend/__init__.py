"""The array library under the model: NumPy, or CuPy on a CUDA device."""

from t5g2ref.backend.find import find
from t5g2ref.backend.interface import NUMPY, Backend, BackendError

__all__ = ["NUMPY", "Backend", "BackendError", "find"]
