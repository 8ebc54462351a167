"""Requests and responses as NumPy arrays: conversion of TensorProto without needless copies, and checks of inputs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from millrace.serving.server.errors import InvalidRequestError

# A TensorProto may ask for any shape by repeating one value; more elements than this are refused.
_MAX_ELEMENTS = 1 << 23


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
    shape = tuple(dimension.size for dimension in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise InvalidRequestError(f"input '{name}': the shape must be given in full")
    elements = 1
    for size in shape:
        elements *= size
    if elements > _MAX_ELEMENTS:
        raise InvalidRequestError(f"input '{name}': {elements} elements; at most {_MAX_ELEMENTS}")
    try:
        if proto.tensor_content:
            dtype = tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype
            return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
        return np.asarray(tf.make_ndarray(proto))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise InvalidRequestError(f"input '{name}': {error}") from error


def fill(proto: tensor_pb2.TensorProto, array: np.ndarray) -> None:
    """Writes `array` into the empty `proto`; numbers travel as `tensor_content`."""
    if array.dtype.kind in "OSU":
        proto.CopyFrom(tf.make_tensor_proto(array, dtype=tf.string, shape=array.shape))
        return
    proto.dtype = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    proto.tensor_content = array.tobytes()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)


def check_inputs(protos: Mapping[str, tensor_pb2.TensorProto], specs: Mapping[str, InputSpec]) -> dict[str, np.ndarray]:
    """Inputs of a request as arrays that fit `specs`.

    Raises:
      InvalidRequestError: naming the input and what it should be.
    """
    if protos.keys() != specs.keys():
        _refuse_names(set(protos), set(specs))
    return {name: _check(name, proto, specs[name]) for name, proto in protos.items()}


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
    return ", ".join(f"'{name}'" for name in names) or "none"
