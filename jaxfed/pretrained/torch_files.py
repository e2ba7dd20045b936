"""Tensors in the zipped pickles of PyTorch (pytorch_model.bin), read without PyTorch.

Of the pickle only tensors, numbers and containers are made; whatever else it names is refused.
"""

import collections
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


DAMAGED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    AttributeError,
    RuntimeError,  # of an encrypted archive
    ValueError,
    TypeError,
)


class _Reader(pickle.Unpickler):
    """Tensors as NumPy arrays, from the files of numbers beside data.pkl."""

    def __init__(self, archive: zipfile.ZipFile, home: str) -> None:
        super().__init__(archive.open(f"{home}/data.pkl"))
        self.archive, self.home = archive, home

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("collections", "OrderedDict"): collections.OrderedDict,
        }
        if (module, name) not in known:
            raise ValueError(f"it holds a {module}.{name}, which is no tensor")
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, *_ = pid
        return np.frombuffer(self.archive.read(f"{self.home}/data/{key}"), STORAGES[kind])


def _tensor(numbers: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    """The array of that shape; strides are in numbers."""
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    room = last < len(numbers) and math.prod(shape) <= len(numbers)
    if min(offset, *strides, *shape, 0) < 0 or (0 not in shape and not room):
        raise ValueError(f"a tensor {shape} is larger than its numbers")
    each = tuple(s * numbers.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, each).copy()


def load(path: Path) -> dict[str, np.ndarray]:
    """{name: tensor} of a file; ValueError if it is damaged, or holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            (home,) = (n.removesuffix("/data.pkl") for n in archive.namelist() if "/data.pkl" in n)
            found = _Reader(archive, home).load()
        if not all(isinstance(x, np.ndarray) for x in dict(found).values()):
            raise ValueError("it holds more than tensors")
    except DAMAGED as error:
        raise ValueError(
            f"{path} cannot be read ({error}); download it again, or save it as safetensors"
        ) from None
    return dict(found)
