"""Reads pickles of plain containers and numpy arrays without running anything that they contain.

The usual restricted Unpickler allows numpy's own functions. Not here: a pickle may call their __setstate__, and a dtype whose
flags lie turns bytes into pointers. So numpy's names become records of this module, and arrays are made afterwards from checked
bytes. One invariant: no class or function from outside this file is reachable from a pickle.
"""

import io
import math
import pickle
import pickletools
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from seresnet.errors import DataError

_NUMBER_TYPES = {"u1": "|u1", "i4": "<i4", "i8": "<i8"}
_NAMES_ALLOWED = "plain containers and numpy arrays of integers"


def load_plain(payload: bytes, place: str) -> dict[Any, Any]:
    """The dict in a pickle, its arrays as numpy arrays; Python 2 strings are bytes. place names the file in errors.

    Raises DataError for anything but a dict of plain containers and integer arrays.
    """
    try:
        _check_memo(payload)
        value = _Unpickler(io.BytesIO(payload), encoding="bytes").load()
        if type(value) is not dict:
            raise pickle.UnpicklingError(f"holds a {type(value).__name__}, not a dict")
        return {key: item.array() if isinstance(item, _Array) else item for key, item in value.items()}
    except Exception as error:  # a hostile pickle can raise anything at all from inside load
        raise DataError(f"{place}: not a pickle of {_NAMES_ALLOWED}: {error}. Nothing in it was run. Get the file again.") from error


def _check_memo(payload: bytes) -> None:
    """The unpickler's memo is an array as long as its highest index: one opcode of five bytes can ask for 64 GB."""
    for opcode, argument, _ in pickletools.genops(payload):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= cast(int, argument) < len(payload):
            raise pickle.UnpicklingError(f"a memo index of {argument}")


class _Array:
    """A pickled ndarray: what its __setstate__ was given."""

    __slots__ = ("_state",)
    _state: tuple[Any, ...]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def array(self) -> NDArray[Any]:
        """A checked copy. Raises ValueError or TypeError for a state that is not that of an integer array."""
        _, shape, dtype, fortran, raw = self._state
        if not isinstance(raw, bytes | bytearray) or not all(type(length) is int and length >= 0 for length in shape):
            raise TypeError("an array of something other than numbers")
        flat = np.frombuffer(bytes(raw), dtype=dtype.numpy_dtype())
        if flat.size != math.prod(shape):
            raise ValueError(f"{flat.size} values for an array of shape {shape}")
        return flat.reshape(shape, order="F" if fortran else "C").copy()


class _Dtype:
    """A pickled dtype: its type string and byte order."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str, order: str = "|") -> None:
        self._code, self._order = code, order

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = _text(state[1])

    def numpy_dtype(self) -> np.dtype[Any]:
        if self._code not in _NUMBER_TYPES or self._order not in "|<=":
            raise TypeError(f"an array of {self._order}{self._code}")
        return np.dtype(_NUMBER_TYPES[self._code])


# What the allowed names become. Instances without a __dict__, made anew for each load: a pickle can set attributes on whatever it
# can name, and here that fails.
class _NdarrayName:
    __slots__ = ()


class _DtypeName:
    __slots__ = ()

    def __call__(self, code: object, *_: object) -> _Dtype:
        return _Dtype(_text(code))


class _Reconstruct:
    __slots__ = ()

    def __call__(self, kind: object, *_: object) -> _Array:
        if not isinstance(kind, _NdarrayName):
            raise pickle.UnpicklingError("an array of a class other than numpy.ndarray")
        return _Array()


class _FromBuffer:
    __slots__ = ()

    def __call__(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        result = _Array()
        result.__setstate__((1, shape, dtype, _text(order) == "F", raw))
        return result


class _Latin1:
    """_codecs.encode(text, "latin1"): how Python 3 writes bytes for Python 2."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or _text(encoding) != "latin1":
            raise pickle.UnpicklingError("_codecs.encode of something other than latin1 text")
        return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _DtypeName,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    ("_codecs", "encode"): _Latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]()


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise pickle.UnpicklingError(f"{value!r:.40} where a name must stand")
    return value
