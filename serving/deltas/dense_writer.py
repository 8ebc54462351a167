"""Assigns dense variables from deltas, which carry large ones in parts."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.serving.deltas.delta_order import DeltaError


class DensePart:
    """A checked part of a variable: `values` [n] go to the elements from `first` on, in C order."""

    def __init__(self, name: str, first: int, values: np.ndarray) -> None:
        self.name, self.first, self.values = name, first, values


class DenseWriter:
    """Checks parts and writes them.

    A variable is assigned as a whole, so that no request sees half of it: when the part that ends it has come, or at
    the next `flush`.

    Args:
      variables: {name: variable with `shape`, `dtype`, `numpy` and `assign`}.
    """

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._unfinished: dict[str, np.ndarray] = {}

    def check(self, dense: ModelDelta.Dense) -> DensePart:
        """The part, if it fits its variable; else DeltaError. Whether its values are finite is not looked at."""
        variable = self._variables.get(dense.name)
        if variable is None:
            raise DeltaError("malformed", f"dense variable '{dense.name}' is unknown")
        shape, dtype = _shape(variable), _dtype(variable)
        if tuple(dense.shape) != shape or dense.dtype != dtype.name:
            wanted = f"{dtype.name}{list(shape)}"
            problem = f"dense variable '{dense.name}': {dense.dtype}{list(dense.shape)}, must be {wanted}"
            raise DeltaError("malformed", problem)
        count, rest = divmod(len(dense.data), dtype.itemsize)
        if rest or dense.first < 0 or dense.first + count > math.prod(shape):
            problem = f"dense variable '{dense.name}': {len(dense.data)} bytes from element {dense.first} on"
            raise DeltaError("malformed", f"{problem} for shape {list(shape)}")
        return DensePart(dense.name, dense.first, np.frombuffer(dense.data, dtype.newbyteorder("<")))

    def write(self, part: DensePart) -> None:
        """Takes a part of `check`."""
        variable = self._variables[part.name]
        values = self._unfinished.pop(part.name, None)
        size, end = math.prod(_shape(variable)), part.first + len(part.values)
        if len(part.values) == size:
            values = part.values
        else:
            values = np.array(variable.numpy()).reshape(-1) if values is None else values
            values[part.first : end] = part.values
        if end == size:
            variable.assign(values.reshape(_shape(variable)))
        else:
            self._unfinished[part.name] = values

    def flush(self) -> None:
        """Assigns variables whose last part has not come."""
        while self._unfinished:
            name, values = self._unfinished.popitem()
            self._variables[name].assign(values.reshape(_shape(self._variables[name])))


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in variable.shape)


def _dtype(variable: Any) -> np.dtype[Any]:
    return np.dtype(variable.dtype.as_numpy_dtype if hasattr(variable.dtype, "as_numpy_dtype") else variable.dtype)
