"""Numpy oracles of the update rules and first vectors in ops/cc/embedding, one entry at a time, in float32.

Rules are known by their `kind`. A state is a dict in the order of the entry's floats.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

_F = np.float32
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

State = dict[str, Any]
Step = Callable[[Any, np.ndarray, State, np.ndarray, np.float32, int], np.ndarray]


def initial_state(optimizer: Any, dim: int) -> State:
    def full(value: float) -> np.ndarray:
        return np.full(dim, value, _F)

    match optimizer.kind if optimizer else "none":
        case "adagrad":
            return {"norm": full(optimizer.initial_accumulator_value)}
        case "adadelta":
            return {"accum": full(0), "accum_update": full(0)}
        case "adam":
            return {"m": full(0), "v": full(0), "b1p": _F(optimizer.beta1), "b2p": _F(optimizer.beta2)}
        case "amsgrad":
            powers = {"b1p": _F(optimizer.beta1), "b2p": _F(optimizer.beta2)}
            return {"m": full(0), "v": full(0), "vhat": full(0), **powers}
        case "adamom":
            return {"m": full(0), "v": full(0), "count": _F(0)}
        case "momentum" | "rmsprop" | "rmspropv2":
            return {"n": full(0)}
        case "ftrl" | "group_ftrl":
            return {"norm": full(optimizer.initial_accumulator_value), "z": full(0)}
        case "group_adagrad":
            return {"square_sum": _F(optimizer.initial_accumulator_value)}
        case "batch_softmax":
            return {"step": np.int64(0)}
    return {}


def _decayed(rule: Any, w: np.ndarray, g: np.ndarray) -> np.ndarray:
    return g + _F(rule.weight_decay_factor) * w


def _divisor(roots: Any) -> Any:
    """A sum of roots, or 1 where it is 0: there all gradients were 0."""
    return np.where(roots > 0, roots, _F(1))


def _kept(vector: np.ndarray, threshold: np.float32) -> np.float32:
    """Share of a vector that is left when its length shrinks by `threshold`."""
    length = _F(np.sqrt(np.sum(np.square(vector, dtype=np.float64))))
    return (length - threshold) / length if length > threshold else _F(0)


def _none(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    return w


def _sgd(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    return w - lr * g


def _adagrad(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    decoupled = getattr(rule, "decouple_weight_decay", False)
    g = g if decoupled else _decayed(rule, w, g)
    state["norm"] = state["norm"] + g * g
    change = lr * g / _divisor(np.sqrt(state["norm"]))
    return w - (change + lr * _F(rule.weight_decay_factor) * w if decoupled else change)


def _adadelta(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    ratio, epsilon = _F(rule.averaging_ratio), _F(rule.epsilon)
    g = _decayed(rule, w, g)
    state["accum"] = ratio * state["accum"] + (_F(1) - ratio) * g * g
    below = _divisor(np.sqrt(state["accum"] + epsilon))
    change = np.sqrt(state["accum_update"] + epsilon) / below * g
    state["accum_update"] = ratio * state["accum_update"] + (_F(1) - ratio) * change * change
    return w - lr * change


def _adam(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    b1, b2 = _F(rule.beta1), _F(rule.beta2)
    g = _decayed(rule, w, g)
    rate = lr * np.sqrt(_F(1) - state["b2p"]) / (_F(1) - state["b1p"])
    state["m"] = state["m"] + (_F(1) - b1) * (g - state["m"])
    state["v"] = state["v"] + (_F(1) - b2) * (g * g - state["v"])
    if rule.kind == "amsgrad":
        state["vhat"] = np.maximum(state["vhat"], state["v"])
    second = state["vhat"] if rule.kind == "amsgrad" else state["v"]
    first = (_F(1) - b1) * g + b1 * state["m"] if rule.use_nesterov else state["m"]
    state["b1p"], state["b2p"] = state["b1p"] * b1, state["b2p"] * b2
    return w - rate * first / _divisor(np.sqrt(second) + _F(rule.epsilon))


def _adamom(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    mom, ada = _F(rule.mom_decay), _F(rule.ada_decay)
    g = _decayed(rule, w, g)
    state["m"] = mom * state["m"] + (_F(1) - mom) * g
    state["v"] = ada * state["v"] + g * g
    state["count"] = ada * state["count"] + _F(1)
    return w - lr * state["m"] / _divisor(np.sqrt(state["v"] / state["count"] + _F(rule.epsilon)))


def _momentum(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    mu, old = _F(rule.momentum), state["n"]
    new = mu * old - lr * _decayed(rule, w, g)
    state["n"] = new
    return w + (-mu * old + (_F(1) + mu) * new if rule.use_nesterov else new)


def _moving_average(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    return _F(rule.momentum) * w + (_F(1) - _F(rule.momentum)) * g


def _rmsprop(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    mu, rate = float(_F(rule.momentum)), float(lr)
    g64 = g.astype(np.float64) + float(_F(rule.weight_decay_factor)) * w.astype(np.float64)
    share = 1 - mu if rule.kind == "rmsprop" else 1.0
    n = mu * state["n"].astype(np.float64) + share * g64 * g64
    state["n"] = n.astype(_F)
    return (w - rate / (np.sqrt(n) + 1) * g64).astype(_F)


def _ftrl(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    if lr == 0:
        return w
    l1, l2 = _F(rule.l1_regularization_strength), _F(rule.l2_regularization_strength)
    norm = state["norm"] + g * g
    z = state["z"] + (g - (np.sqrt(norm) - np.sqrt(state["norm"])) / lr * w)
    state["norm"], state["z"] = norm, z
    shrunk = z * _kept(z, l1) if rule.kind == "group_ftrl" else np.sign(z) * np.maximum(np.abs(z) - l1, _F(0))
    return -lr * shrunk / _divisor(np.sqrt(norm) + _F(rule.beta) + l2 * lr)


def _group_adagrad(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    if lr == 0:
        return w
    g = _decayed(rule, w, g)
    state["square_sum"] = state["square_sum"] + np.max(g * g)
    rate = lr / _F(_divisor(_F(rule.beta) + np.sqrt(state["square_sum"])))
    w = w - rate * g
    return w * _kept(w, rate * _F(rule.l2_regularization_strength))


def _batch_softmax(rule: Any, w: np.ndarray, state: State, g: np.ndarray, lr: np.float32, step: int) -> np.ndarray:
    if step < 0:
        return w
    interval = _F(step - int(state["step"]))
    state["step"] = np.int64(step)
    return (_F(1) - lr) * w + lr * interval


_STEPS: dict[str, Step] = {
    "none": _none,
    "sgd": _sgd,
    "adagrad": _adagrad,
    "adadelta": _adadelta,
    "adam": _adam,
    "amsgrad": _adam,
    "adamom": _adamom,
    "momentum": _momentum,
    "moving_average": _moving_average,
    "rmsprop": _rmsprop,
    "rmspropv2": _rmsprop,
    "ftrl": _ftrl,
    "group_ftrl": _ftrl,
    "group_adagrad": _group_adagrad,
    "batch_softmax": _batch_softmax,
}


def update(
    optimizer: Any,
    weights: np.ndarray,
    state: State,
    gradient: np.ndarray,
    learning_rate: float,
    global_step: int = 0,
) -> np.ndarray:
    """New weights float32 [dim]; `state` is updated in place."""
    step = _STEPS[optimizer.kind if optimizer else "none"]
    return step(optimizer, weights, state, gradient.astype(_F), _F(learning_rate), global_step).astype(_F)


def state_floats(state: State) -> np.ndarray:
    """The state as it lies in an entry, float32 [n]: an int64 in two."""
    parts = [np.atleast_1d(value).view(_F) for value in state.values()]
    return np.concatenate(parts) if parts else np.zeros(0, _F)


def compensate_delay(strength: float, weights: np.ndarray, read_weights: np.ndarray, gradient: np.ndarray) -> Any:
    """The gradient at `weights` from one taken at `read_weights`, float32 [dim]."""
    return gradient + _F(strength) * gradient * gradient * (weights - read_weights)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _random_bits(stream: int, first: int, count: int) -> list[int]:
    """64 bits for each of `count` dims from `first` on."""
    return [_mix((stream + (first + i + 1) * 0xD1342543DE82EF95) & _MASK) for i in range(count)]


def round_to_half(key: int, weights: np.ndarray) -> np.ndarray:
    """Stochastic rounding to the fp16 value below or above, float32 [dim]."""
    rounded = weights.copy()
    for i, bits in enumerate(_random_bits(_mix((key + _GOLDEN) & _MASK), 0, len(weights))):
        weight = float(weights[i])
        if not abs(weight) <= 65504:
            continue
        below = np.float16(weight)
        below = np.nextafter(below, np.float16(-np.inf)) if float(below) > weight else below
        above = np.nextafter(below, np.float16(np.inf))
        share = (weight - float(below)) / (float(above) - float(below)) if float(below) != weight else 0.0
        rounded[i] = above if (bits >> 11) * 2.0**-53 < share else below
    return rounded


def first_weights(initializer: Any, seed: int, table: str, fid: int, dim: int, first_dim: int = 0) -> np.ndarray:
    """First weights of `dim` dims of an entry from `first_dim` on, float32 [dim]."""
    if initializer.kind != "random_uniform":
        return np.full(dim, {"zeros": 0, "ones": 1}.get(initializer.kind, getattr(initializer, "value", 0)), _F)
    low, high = _F(initializer.minval), _F(initializer.maxval)
    if low == high:
        return np.full(dim, low, _F)
    name_hash = 0xCBF29CE484222325
    for byte in table.encode():
        name_hash = ((name_hash ^ byte) * 0x100000001B3) & _MASK
    key = _mix((seed + _GOLDEN) & _MASK) ^ name_hash
    stream = _mix((key + (fid & _MASK) * _GOLDEN) & _MASK)
    units = [bits >> 40 for bits in _random_bits(stream, first_dim, dim)]
    values = low + np.array(units, _F) * _F(2.0**-24) * (high - low)
    return np.minimum(values, np.nextafter(high, low)).astype(_F)


def first_vector(table: Any, fid: int) -> np.ndarray:
    """First weights of an id in a table of one segment, float32 [dim]."""
    return first_weights(table.initializer, table.seed, table.name, fid, table.dim)
