"""One prediction from `name=value,value` words: types from the server's metadata, errors that say what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from millrace.runtime.errors import UserError
from millrace.serving.client.predict_client import PredictClient


@dataclass(frozen=True)
class PredictOptions:
    """What `millrace predict` asks; `inputs` are `name=value[,value...]`."""

    server: str
    model: str
    inputs: tuple[str, ...]
    version: int | None = None
    signature: str = "serving_default"
    timeout: float = 5.0


@dataclass(frozen=True)
class Answer:
    """Inputs as sent and outputs as answered, one row per example."""

    model: str
    version: int
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        outputs = {name: array.tolist() for name, array in sorted(self.outputs.items())}
        return {"model": self.model, "version": self.version, "outputs": outputs}

    def to_table(self) -> str:
        columns = [*self.inputs, *sorted(self.outputs)]
        arrays = {**self.inputs, **self.outputs}
        count = max((len(array) for array in arrays.values() if array.ndim), default=1)
        rows = [[_cell(arrays[name], row) for name in columns] for row in range(count)]
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [columns, *rows]
        ]
        return "\n".join([f"{self.model} version {self.version}", *lines])


def _cell(array: np.ndarray, row: int) -> str:
    value = array[row] if array.ndim and row < len(array) else array
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return f"{value:.6g}" if isinstance(value, np.floating) else str(value)


def predict_once(options: PredictOptions) -> Answer:
    """Asks the server; UserError for wrong inputs and for what the server answers."""
    words = _split(options.inputs)
    with PredictClient(options.server, options.model, options.timeout) as client:
        try:
            definition = _signature(client.signatures(), options)
            inputs = _arrays(words, definition)
            outputs, version = client.predict_with_version(inputs, (), options.version, options.signature)
        except grpc.RpcError as error:
            raise _explained(error, options) from error
    return Answer(options.model, version, inputs, outputs)


def _split(words: Sequence[str]) -> dict[str, list[str]]:
    split: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not name or name in split:
            problem = "is given twice" if name in split else "is not NAME=VALUE"
            raise UserError("--input", word, problem, "give --input once for each input, like --input user_id=17")
        split[name] = values.split(",")
    return split


def _signature(
    signatures: Mapping[str, meta_graph_pb2.SignatureDef], options: PredictOptions
) -> meta_graph_pb2.SignatureDef:
    try:
        return signatures[options.signature]
    except KeyError:
        choices = ", ".join(sorted(signatures))
        raise UserError(
            "--signature", options.signature, "the model has no such signature", f"choose of: {choices}"
        ) from None


def _arrays(words: Mapping[str, list[str]], definition: meta_graph_pb2.SignatureDef) -> dict[str, np.ndarray]:
    """Values as arrays of the signature's dtypes, single ones repeated to the longest list."""
    described = ", ".join(
        f"{name} ({tf.dtypes.as_dtype(info.dtype).name})" for name, info in sorted(definition.inputs.items())
    )
    for name in sorted(set(words) ^ set(definition.inputs)):
        problem = "is missing" if name in definition.inputs else "is no input of the model"
        raise UserError("--input", name, problem, f"inputs: {described}")
    batch = max((len(values) for values in words.values()), default=0)
    return {name: _array(name, values, batch, definition.inputs[name]) for name, values in words.items()}


def _array(name: str, values: list[str], batch: int, info: meta_graph_pb2.TensorInfo) -> np.ndarray:
    if len(values) not in (1, batch):
        remedy = f"give 1 value or {batch}, as many as the longest input"
        raise UserError("--input", name, f"has {len(values)} values", remedy)
    dtype = tf.dtypes.as_dtype(info.dtype)
    try:
        parsed = [value.encode() if dtype == tf.string else dtype.as_numpy_dtype(value) for value in values]
    except (ValueError, OverflowError) as error:
        raise UserError("--input", f"{name}={','.join(values)}", "has the wrong type", f"give {dtype.name}") from error
    array = np.array(
        parsed * (batch if len(parsed) == 1 else 1), object if dtype == tf.string else dtype.as_numpy_dtype
    )
    return array.reshape(_shape(info.tensor_shape, batch))


def _shape(shape: tensor_shape_pb2.TensorShapeProto, batch: int) -> list[int]:
    """[batch], with the 1s that the signature wants after it."""
    return [batch] + [1] * max(0, len(shape.dim) - 1)


def _explained(error: grpc.RpcError, options: PredictOptions) -> UserError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and "not loaded yet" not in details:
        return UserError("--server", options.server, "no model server answers", "start one with `millrace serve`")
    if code is grpc.StatusCode.UNAVAILABLE:
        return UserError("--model", options.model, details, "wait for the first export, or look at the server's log")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UserError("--timeout", options.timeout, "the server did not answer in time", "allow more seconds")
    field = "--input" if code is grpc.StatusCode.INVALID_ARGUMENT else "--model"
    return UserError(field, options.model, details, f"the server answered {code.name}")
