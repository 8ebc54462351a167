"""Numpy oracles of the update rules and first vectors in ops/cc/embedding, one entry at a time, in float32."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ops.table_config import Adagrad, Adam, Constant, Ftrl, RandomUniform, Sgd, TableConfig

_F = np.float32
_MASK = (1 << 64) - 1

State = dict[str, Any]


def initial_state(optimizer: Any, dim: int) -> State:
    match optimizer:
        case Adagrad():
            return {"norm": np.full(dim, optimizer.initial_accumulator_value, _F)}
        case Adam():
            zeros = np.zeros(dim, _F)
            return {"m": zeros, "v": zeros.copy(), "b1p": _F(optimizer.beta1), "b2p": _F(optimizer.beta2)}
        case Ftrl():
            return {"norm": np.full(dim, optimizer.initial_accumulator_value, _F), "z": np.zeros(dim, _F)}
    return {}


def _sgd(rule: Sgd, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32) -> np.ndarray:
    return w - lr * g


def _adagrad(rule: Adagrad, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32) -> np.ndarray:
    g = g + _F(rule.weight_decay_factor) * w
    state["norm"] = state["norm"] + g * g
    root = np.sqrt(state["norm"])
    return w - lr * g / np.where(root > 0, root, _F(1))


def _adam(rule: Adam, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32) -> np.ndarray:
    b1, b2 = _F(rule.beta1), _F(rule.beta2)
    g = g + _F(rule.weight_decay_factor) * w
    rate = lr * np.sqrt(_F(1) - state["b2p"]) / (_F(1) - state["b1p"])
    state["m"] = state["m"] + (_F(1) - b1) * (g - state["m"])
    state["v"] = state["v"] + (_F(1) - b2) * (g * g - state["v"])
    step = (_F(1) - b1) * g + b1 * state["m"] if rule.use_nesterov else state["m"]
    below = np.sqrt(state["v"]) + _F(rule.epsilon)
    state["b1p"], state["b2p"] = state["b1p"] * b1, state["b2p"] * b2
    return w - rate * step / np.where(below > 0, below, _F(1))


def _ftrl(rule: Ftrl, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32) -> np.ndarray:
    if lr == 0:
        return w
    l1, l2 = _F(rule.l1_regularization_strength), _F(rule.l2_regularization_strength)
    norm = state["norm"] + g * g
    state["z"] = state["z"] + (g - (np.sqrt(norm) - np.sqrt(state["norm"])) / lr * w)
    state["norm"] = norm
    z = state["z"]
    below = np.sqrt(norm) + _F(rule.beta) + l2 * lr
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(z) <= l1, _F(0), lr * (np.copysign(l1, z) - z) / below).astype(_F)


_RULES: dict[type, Callable[..., np.ndarray]] = {Sgd: _sgd, Adagrad: _adagrad, Adam: _adam, Ftrl: _ftrl}


def update(optimizer: Any, weights: np.ndarray, state: State, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
    """New weights float32 [dim]; `state` is updated in place."""
    return _RULES[type(optimizer)](optimizer, weights, state, gradient.astype(_F), _F(learning_rate))


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def first_vector(table: TableConfig, fid: int) -> np.ndarray:
    """First weights of an id, float32 [dim]."""
    if isinstance(table.initializer, Constant):
        return np.full(table.dim, table.initializer.value, _F)
    if not isinstance(table.initializer, RandomUniform):
        return np.zeros(table.dim, _F)
    low, high = _F(table.initializer.minval), _F(table.initializer.maxval)
    if low == high:
        return np.full(table.dim, low, _F)
    name_hash = 0xCBF29CE484222325
    for byte in table.name.encode():
        name_hash = ((name_hash ^ byte) * 0x100000001B3) & _MASK
    key = _mix((table.seed + 0x9E3779B97F4A7C15) & _MASK) ^ name_hash
    stream = _mix((key + (fid & _MASK) * 0x9E3779B97F4A7C15) & _MASK)
    units = [_mix((stream + (i + 1) * 0xD1342543DE82EF95) & _MASK) >> 40 for i in range(table.dim)]
    values = low + np.array(units, _F) * _F(2.0**-24) * (high - low)
    return np.minimum(values, np.nextafter(high, low)).astype(_F)
