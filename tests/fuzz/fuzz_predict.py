"""Feeds changed PredictRequests to the prediction service: nothing but ServingError comes out, and no request grows.

    python -m tests.fuzz.fuzz_predict --runs 1000000 --seed 1

A run depends on the sum of seed and its number alone.
"""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import model_pb2, predict_pb2

from millrace.serving.server.errors import NotFoundError, ServingError
from millrace.serving.server.prediction_service import PredictionService
from millrace.serving.server.servable import ServableId
from millrace.serving.server.tensors import InputSpec, RequestLimits
from tests.fuzz import runs

_SPECS = {
    "user_id": InputSpec(tf.int64, (None,)),
    "context.device": InputSpec(tf.string, (None,)),
    "history": InputSpec(tf.float32, (None, 3)),
    "any": InputSpec(tf.int32, None),
}
_LIMITS = RequestLimits(batch_rows=50_000, elements=200_000)
_NAMES = [*_SPECS, "", "m", "click", "serving_default", "no\ud7ffsuch", "x" * 5000]
_NUMBERS = [0, 1, 2, 3, 4, 5, 1000, 1025, 40_000, 50_001, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -1, -(2**63)]
_FIELDS: dict[str, Callable[[random.Random], Any]] = {
    "int64_val": lambda draw: draw.choice(_NUMBERS),
    "int_val": lambda draw: draw.choice([0, 1, -1, 2**31 - 1]),
    "float_val": lambda draw: draw.choice([0.0, 1.5, float("nan"), float("inf")]),
    "double_val": lambda draw: draw.random(),
    "string_val": lambda draw: draw.randbytes(draw.randrange(4)),
    "bool_val": lambda draw: True,
    "half_val": lambda draw: draw.randrange(1 << 16),
    "scomplex_val": lambda draw: 1.0,
    "uint32_val": lambda draw: draw.randrange(1 << 32),
    "uint64_val": lambda draw: draw.randrange(1 << 64),
}
_BYTES_PER_BYTE = 64  # an array may take so many times the bytes of its request: Python's strings are the largest
_SLACK_BYTES = 4 * 1024 * 8  # and each input what a repeated value may make of it
_MOST_SECONDS = 2.0  # a busy machine may stop a run for a while; a request that grows takes longer


class Servable:
    """Adds nothing up, and refuses what does not fit its specs."""

    signature_defs: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.bytes = 0

    def inputs(self, signature: str) -> Mapping[str, InputSpec]:
        if signature not in ("", "serving_default"):
            raise NotFoundError("no such signature")
        return _SPECS

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert inputs.keys() == _SPECS.keys()
        for name, array in inputs.items():
            spec = _SPECS[name]
            assert array.dtype == (object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype), name
            if spec.shape is not None:
                assert array.ndim == len(spec.shape), name
            assert array.size <= _LIMITS.elements
            assert not array.ndim or array.shape[0] <= _LIMITS.batch_rows
        self.bytes = sum(array.nbytes for array in inputs.values())
        rows = len(inputs["user_id"])
        return {"click": np.zeros(rows, np.float32), "tag": np.full(rows, b"t", object)}


def _valid(draw: random.Random) -> predict_pb2.PredictRequest:
    rows = draw.randrange(4)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    for name, value in {
        "user_id": np.arange(rows),
        "context.device": np.array([b"phone"] * rows, object),
        "history": np.zeros((rows, 3), np.float32),
        "any": np.int32(7),
    }.items():
        dtype = _SPECS[name].dtype
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype, shape=np.shape(value)))
    return request


def _change_tensor(proto: Any, draw: random.Random) -> None:
    kind = draw.randrange(8)
    dims = proto.tensor_shape.dim
    if kind == 0:
        proto.dtype = draw.randrange(30)
    elif kind == 1:
        proto.tensor_content = draw.randbytes(draw.choice([0, 1, 4, 8, 24, 8000, 40_008]))
    elif kind == 2:
        field = draw.choice(list(_FIELDS))
        values = [_FIELDS[field](draw) for _ in range(draw.choice([0, 1, 2, 3, 1000, 5000]))]
        proto.ClearField(field)
        getattr(proto, field).extend(values)
    elif kind == 3:
        dims.add(size=draw.choice(_NUMBERS))
    elif kind == 4:
        for _ in range(draw.choice([1, 31, 40, 2000])):
            dims.add(size=draw.choice(_NUMBERS))
    elif kind == 5 and dims:
        draw.choice(dims).size = draw.choice(_NUMBERS)
    elif kind == 6:
        proto.tensor_shape.unknown_rank = draw.random() < 0.5
    elif dims:
        del dims[draw.randrange(len(dims)) :]


def _change_fields(request: predict_pb2.PredictRequest, draw: random.Random) -> None:
    kind = draw.randrange(8)
    name = draw.choice(list(_SPECS))
    if kind == 0:
        request.model_spec.name = draw.choice(_NAMES)
    elif kind == 1:
        request.model_spec.signature_name = draw.choice(_NAMES)
    elif kind == 2:
        request.output_filter.append(draw.choice(_NAMES))
    elif kind == 3:
        request.inputs.pop(name, None)
    elif kind == 4:
        request.inputs[draw.choice(_NAMES)].CopyFrom(request.inputs[name])
        if draw.random() < 0.1:
            for number in range(1000):
                request.inputs[f"input {number}"].dtype = 1
    else:
        _change_tensor(request.inputs[name], draw)


def _change_bytes(value: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(value)), draw.randrange(1, 16)
    flipped = bytearray(value)
    flipped[at] ^= 1 << draw.randrange(8)
    changes = [
        bytes(flipped),
        value[:at],
        value[:at] + draw.randbytes(length) + value[at:],
        value[:at] + value[at + length :],
    ]
    return draw.choice(changes)


def _changed(draw: random.Random) -> predict_pb2.PredictRequest | None:
    """A changed request, as gRPC would hand it on; None when it is not one any more."""
    request = _valid(draw)
    if draw.random() < 0.6:
        for _ in range(draw.randrange(1, 4)):
            _change_fields(request, draw)
        return request
    try:
        return predict_pb2.PredictRequest.FromString(_change_bytes(request.SerializeToString(), draw))
    except DecodeError:
        return None


def _run(seed: int) -> bool:
    """Whether the changed request was answered. Raises AssertionError when the service did wrong."""
    request = _changed(random.Random(seed))
    if request is None:
        return False
    servable = Servable()

    def acquire(spec: model_pb2.ModelSpec) -> Any:
        if spec.name != "m":
            raise NotFoundError("no such model")
        return _Handle(servable)

    begin = time.monotonic()
    try:
        response = PredictionService(acquire, _LIMITS).Predict(request, None)
    except ServingError as error:
        assert error.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error
        assert len(str(error)) < 2000, "an error repeats its request"
        return False
    finally:
        assert time.monotonic() - begin < _MOST_SECONDS, "a request takes too long"
    most = _BYTES_PER_BYTE * request.ByteSize() + _SLACK_BYTES
    assert servable.bytes <= most, f"{request.ByteSize()} bytes became {servable.bytes}"
    response.SerializeToString()
    return True


class _Handle:
    """What `VersionManager.acquire` gives."""

    id = ServableId("m", 1)

    def __init__(self, servable: Servable) -> None:
        self._servable = servable

    def __enter__(self) -> Servable:
        return self._servable

    def __exit__(self, *_: object) -> None:
        pass


def fuzz(count: int, seed: int) -> int:
    """Returns how many of the changed requests were answered; the rest was refused."""
    return runs.count(_run, count, seed)


if __name__ == "__main__":
    runs.main(__doc__.splitlines()[0], fuzz, "answered")
