"""Pickles of numpy arrays that nobody vouches for: nothing in them runs, and nothing is allocated that is not in the
file.

Numpy's names in a pickle are answered by stand-ins that make an array only of the bytes that come with it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from flywheel.episode import EpisodeError

KIND = re.compile(r"[<>|=]?[biufSU?O]\d{0,4}|[?]")


class Array:
    """What stands for the class numpy.ndarray: it cannot be called."""


def empty(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """numpy's `_reconstruct`: always an empty array, whose state (shape and bytes, which must agree) follows."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def number(dtype: np.dtype, data: Any = b"") -> Any:
    """numpy's `scalar`: one number from its bytes."""
    data = data.encode("latin1") if isinstance(data, str) else data
    if dtype.kind not in "biuf" or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError(f"a number of {dtype} from {len(data)} bytes")
    return np.frombuffer(data, dtype)[0]


def kind(name: Any, *more: Any) -> np.dtype:
    """numpy.dtype of a plain number or text."""
    if not isinstance(name, str) or not KIND.fullmatch(name):
        raise pickle.UnpicklingError(f"it asks for the dtype {str(name)[:40]!r}; only numbers are read from a pickle")
    return np.dtype(name)


def latin(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode, with which Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {str(encoding)[:40]!r}")
    return text.encode("latin1")


def view(data: Any, dtype: np.dtype, shape: Any, order: str = "C") -> np.ndarray:
    """numpy's `_frombuffer`."""
    return np.frombuffer(data, dtype).reshape(shape, order=order)


ALLOWED = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): kind,
    ("_codecs", "encode"): latin,
    **{
        (f"numpy.{core}.multiarray", name): made
        for core in ("core", "_core")
        for name, made in (("_reconstruct", empty), ("scalar", number))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): view for core in ("core", "_core")},
}


class ArraysOnly(pickle.Unpickler):
    """Refuses, by name, any global that is not one of numpy's array types; nothing in the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only numpy arrays are read from a pickle")
        return ALLOWED[module, name]


def load(path: Path) -> Any:
    """The numpy objects in a pickle, or EpisodeError that names what it asked for."""
    try:
        data = Path(path).read_bytes()
        for count, (op, argument, _) in enumerate(pickletools.genops(data)):
            if op.name in ("PUT", "LONG_BINPUT") and argument > count:
                raise pickle.UnpicklingError(f"it counts to {argument} after {count} steps")
            if op.name in ("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER"):
                raise pickle.UnpicklingError(f"it asks for {op.name}; only numpy arrays are read from a pickle")
        return ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:
        raise EpisodeError(f"{path}: not a pickle of numpy arrays: {str(error)[:500]}") from error


def array(value: Any, where: str) -> np.ndarray:
    """A recorded array of numbers; EpisodeError for lists, texts and objects."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        what = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise EpisodeError(f"{where}: found {what}; expected a numpy array of numbers")
    return value
