"""Requests and responses as NumPy arrays: conversion of TensorProto without needless copies, and checks of inputs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from millrace.serving.server.errors import InvalidRequestError

# A TensorProto may fill any shape by repeating its last value. Up to this many elements, a scalar for a small batch,
# that saves a client work; beyond it, a request of 116 bytes would become an array of any size.
_MAX_REPEATED = 1024
# The product of a million sizes would take minutes; no signature has tensors of so many dimensions.
_MAX_RANK = 32
# The fields of a TensorProto that hold values one by one, those of a complex number in pairs.
_VALUE_FIELDS = (
    "half_val", "float_val", "double_val", "int_val", "string_val", "int64_val", "bool_val", "uint32_val", "uint64_val",
)  # fmt: skip


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for.

    Args:
      batch_rows: size of the first dimension of an input: rows cost memory for each embedding that they look up.
      elements: of all inputs together. An element takes 8 bytes, of strings some 50, while its request may be smaller.
    """

    batch_rows: int = 100_000
    elements: int = 1 << 23


@dataclass(frozen=True)
class InputSpec:
    """One named input of a signature; None in `shape` is any size, `shape` None any rank."""

    dtype: tf.DType
    shape: tuple[int | None, ...] | None


def to_array(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The value of input `name`; shares memory with `proto` where it carries `tensor_content`.

    Raises:
      InvalidRequestError: shape and content do not fit each other.
    """
    shape = _shape(name, proto)
    try:
        if proto.tensor_content:
            dtype = tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype
            return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
        _check_repeated(name, proto, math.prod(shape))
        return np.asarray(tf.make_ndarray(proto))
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise InvalidRequestError(f"input '{name}': {error}") from error


def _shape(name: str, proto: tensor_pb2.TensorProto) -> tuple[int, ...]:
    if len(proto.tensor_shape.dim) > _MAX_RANK:
        raise InvalidRequestError(f"input '{name}': {len(proto.tensor_shape.dim)} dimensions; at most {_MAX_RANK}")
    shape = tuple(dimension.size for dimension in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise InvalidRequestError(f"input '{name}': the shape must be given in full")
    return shape


def _check_repeated(name: str, proto: tensor_pb2.TensorProto, elements: int) -> None:
    given = sum(len(getattr(proto, field)) for field in _VALUE_FIELDS)
    if elements > max(given, _MAX_REPEATED):
        raise InvalidRequestError(
            f"input '{name}': {given} values for {elements} elements; beyond {_MAX_REPEATED} each needs its own value"
        )


def fill(proto: tensor_pb2.TensorProto, array: np.ndarray) -> None:
    """Writes `array` into the empty `proto`; numbers travel as `tensor_content`."""
    if array.dtype.kind in "OSU":
        proto.CopyFrom(tf.make_tensor_proto(array, dtype=tf.string, shape=array.shape))
        return
    proto.dtype = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    proto.tensor_content = array.tobytes()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)


def check_inputs(
    protos: Mapping[str, tensor_pb2.TensorProto], specs: Mapping[str, InputSpec], limits: RequestLimits
) -> dict[str, np.ndarray]:
    """Inputs of a request as arrays that fit `specs` and `limits`; sizes are checked before arrays are made.

    Raises:
      InvalidRequestError: naming the input and what it should be.
    """
    if protos.keys() != specs.keys():
        _refuse_names(set(protos), set(specs))
    _check_sizes(protos, limits)
    return {name: _check(name, proto, specs[name]) for name, proto in protos.items()}


def _check_sizes(protos: Mapping[str, tensor_pb2.TensorProto], limits: RequestLimits) -> None:
    elements = 0
    for name, proto in protos.items():
        shape = _shape(name, proto)
        if shape and shape[0] > limits.batch_rows:
            raise InvalidRequestError(
                f"input '{name}': {shape[0]} rows; at most {limits.batch_rows} (--max-batch-rows)"
            )
        elements += math.prod(shape)
    if elements > limits.elements:
        raise InvalidRequestError(f"the inputs have {elements} elements; at most {limits.elements}")


def unequal_rows(inputs: Mapping[str, np.ndarray]) -> str:
    """ "user_id 2, item_id 3" when inputs have different numbers of rows, else ""."""
    rows = {name: array.shape[0] for name, array in inputs.items() if array.ndim}
    return ", ".join(f"{name} {count}" for name, count in sorted(rows.items())) if len(set(rows.values())) > 1 else ""


def check_known(kind: str, names: Iterable[str], choices: Iterable[str]) -> None:
    """Refuses names that are not among `choices`."""
    known = sorted(choices)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InvalidRequestError(f"unknown {kind} {_quoted(unknown)}; {kind}s: {_quoted(known)}")


def _refuse_names(given: set[str], known: set[str]) -> None:
    check_known("input", given, known)
    missing = sorted(known - given)
    raise InvalidRequestError(f"missing input {_quoted(missing)}; inputs: {_quoted(sorted(known))}")


def _check(name: str, proto: tensor_pb2.TensorProto, spec: InputSpec) -> np.ndarray:
    if proto.dtype != spec.dtype.as_datatype_enum:
        raise InvalidRequestError(f"input '{name}': dtype {_dtype_name(proto.dtype)}, must be {spec.dtype.name}")
    array = to_array(name, proto)
    if spec.shape is not None and not _fits(array.shape, spec.shape):
        wanted = ", ".join("any" if size is None else str(size) for size in spec.shape)
        raise InvalidRequestError(f"input '{name}': shape {list(array.shape)}, must be [{wanted}]")
    return array


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == size for size, w in zip(shape, wanted, strict=True))


def _dtype_name(number: int) -> str:
    try:
        return str(tf.dtypes.as_dtype(number).name)
    except TypeError:
        return f"number {number}"


def _quoted(names: Iterable[str]) -> str:
    """Up to 20 names, each cut off after 60 letters: a status travels in a header, and names come from the request."""
    shown = [f"'{name[:60]}'" for name in names]
    return ", ".join(shown[:20] + ["..."] * (len(shown) > 20)) or "none"
