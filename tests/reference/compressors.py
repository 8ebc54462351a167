"""Numpy oracles of the compressors in ops/cc/embedding. Rules are known by their `kind`."""

import math
from typing import Any

import numpy as np

_F = np.float32


def encode(compressor: Any, weights: np.ndarray) -> bytes:
    """Codes of float32 [dim]."""
    match compressor.kind:
        case "fp32":
            return weights.astype("<f4").tobytes()
        case "fp16":
            with np.errstate(over="ignore"):
                return weights.astype("<f2").tobytes()
        case "bf16":
            return _bfloat16(weights).astype("<u2").tobytes()
        case "int8":
            return _steps(compressor, weights).astype(np.int8).tobytes()
        case "one_bit" if compressor.packed:
            return np.packbits(weights > 0, bitorder="little").tobytes()
        case "one_bit":
            return np.where(weights > 0, 1, -1).astype(np.int8).tobytes()
    raise ValueError(compressor)


def decode(compressor: Any, codes: bytes, dim: int) -> np.ndarray:
    """Weights float32 [dim]."""
    match compressor.kind:
        case "fp32":
            return np.frombuffer(codes, "<f4").astype(_F)
        case "fp16":
            return np.frombuffer(codes, "<f2").astype(_F)
        case "bf16":
            return (np.frombuffer(codes, "<u2").astype(np.uint32) << 16).view(_F)
        case "int8":
            return np.frombuffer(codes, np.int8) * (_F(compressor.range) / _F(128))
        case "one_bit" if compressor.packed:
            bits = np.unpackbits(np.frombuffer(codes, np.uint8), count=dim, bitorder="little")
            return np.where(bits == 1, _F(compressor.amplitude), -_F(compressor.amplitude))
        case "one_bit":
            return np.frombuffer(codes, np.int8) * _F(compressor.amplitude)
    raise ValueError(compressor)


def forward(compressor: Any, weights: np.ndarray, global_step: int) -> np.ndarray:
    """What a training table shows of its weights, float32 [dim]."""
    match compressor.kind if compressor else "fp32":
        case "int8":
            return decode(compressor, encode(compressor, weights), len(weights))
        case "one_bit":
            return _F(compressor.amplitude) * np.tanh(_scale(compressor, global_step) * weights)
    return weights


def backward(compressor: Any, weights: np.ndarray, gradient: np.ndarray, global_step: int) -> np.ndarray:
    """The gradient of the weights from that of what was shown, float32 [dim]."""
    if compressor is None or compressor.kind != "one_bit":
        return gradient
    scale = _scale(compressor, global_step)
    return gradient * (_F(compressor.amplitude) * scale * (_F(1) - np.tanh(scale * weights) ** 2))


def _bfloat16(weights: np.ndarray) -> np.ndarray:
    bits = weights.astype(_F).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(weights), (bits >> 16) | 0x40, rounded)


def _steps(compressor: Any, weights: np.ndarray) -> np.ndarray:
    step = _F(compressor.range) / _F(128)
    steps = np.trunc((weights + np.copysign(step / _F(2), weights)) / step)
    return np.nan_to_num(np.clip(steps, -128, 127), nan=0)


def _scale(compressor: Any, global_step: int) -> np.float32:
    step = max(global_step, 0) // compressor.step_size * compressor.step_size
    return _F(min(compressor.init_scale * math.sqrt(1 + 0.005 * step), compressor.max_scale))
