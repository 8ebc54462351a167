"""Arithmetic of the labels of one row, in Python's numbers; the caller rounds to float32."""

import math
from collections.abc import Sequence

from millrace.protos.transform_config_pb2 import LabelNormalizationConfig as Normalization
from millrace.transforms.batch.record_batch import INVALID_LABEL


def bound(labels: Sequence[float], bounds: Sequence[float]) -> list[float]:
    if len(labels) < len(bounds):
        return list(labels)
    return [
        min(label, bounds[index]) if index < len(bounds) and label != INVALID_LABEL else label
        for index, label in enumerate(labels)
    ]


def normalize(label: float, operations: Sequence[tuple[int, float]]) -> float:
    if label == INVALID_LABEL:
        return label
    for method, value in operations:
        label = _normalized(label, method, value)
    return label


def _normalized(x: float, method: int, value: float) -> float:
    if method == Normalization.LOG:
        return math.log(x + value) if x + value > 0 else -math.inf
    if method == Normalization.SCALE:
        return x / value
    if method == Normalization.SCALE2INT:
        return float(math.trunc(x / value))
    if method == Normalization.POW:
        return float((x + 1) ** value)
    if method == Normalization.REPOW:
        return float(x**value) if x > 0 else 0.0
    return math.log(x / value + 1) if x / value + 1 > 0 else -math.inf


def raise_to(labels: Sequence[float], floor: float) -> list[float]:
    return [label if label == INVALID_LABEL else max(label, floor) for label in labels]
