"""Dense variables and the state of their optimizer, in a file by name: `dense.npz` of a checkpoint."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from millrace.runtime.errors import UserError
from millrace.training.step.train_step import TrainStep
from millrace.training.task.heads import unique_names

DENSE_FILE = "dense.npz"
_FORMAT_1 = Path("dense") / "variables"  # in a checkpoint of format 1: variables by their position
_NAMES_SHOWN = 5  # of each side of a mismatch: one line has room for them


class DenseFileError(ValueError):
    """The file is no archive of arrays."""


def dense_arrays(step: TrainStep) -> dict[str, np.ndarray]:
    """{name: a copy of the value} of the model's variables and of what its optimizer keeps for them.

    Hyperparameters of the optimizer, such as the learning rate, are no part of it: they are the task's.
    """
    return {name: np.array(variable.numpy()) for name, variable in _variables(step).items()}


def encode_dense(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as a NumPy archive."""
    buffer = io.BytesIO()
    # As an argument of a call a name could be that of a parameter, so each gets a prefix.
    np.savez(buffer, allow_pickle=False, **{f"dense/{name}": array for name, array in arrays.items()})
    return buffer.getvalue()


def decode_dense(data: bytes) -> dict[str, np.ndarray]:
    """What `encode_dense` was given. Raises DenseFileError when `data` is anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name.removeprefix("dense/"): arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DenseFileError(f"{DENSE_FILE} cannot be read: {error}") from error


def read_format_1(folder: Path, step: TrainStep) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint of format 1, which knows positions only: each gets the name at its position in `step`.

    Raises:
      tf.errors.OpError: the files cannot be read.
    """
    reader = tf.train.load_checkpoint(str(folder / _FORMAT_1))
    stored = {key.split("/")[0]: reader.get_tensor(key) for key in reader.get_variable_to_shape_map() if "_" in key}
    arrays = {}
    for kind, names in (("model", list(_model(step))), ("optimizer", list(_optimizer(step, hyper=True)))):
        count = sum(key.startswith(f"{kind}_") and key.removeprefix(f"{kind}_").isdecimal() for key in stored)
        for i in range(count):
            arrays[names[i] if i < len(names) else f"{kind}/at position {i}"] = stored[f"{kind}_{i}"]
    hyper = _optimizer(step, hyper=True).keys() - _optimizer(step).keys()
    return {name: array for name, array in arrays.items() if name not in hyper}


def check_dense_fits(arrays: Mapping[str, np.ndarray], step: TrainStep, folder: Path) -> None:
    """Raises UserError when the names or shapes are not those of `step`; it names what differs on both sides."""
    wanted = {name: tuple(variable.shape) for name, variable in _variables(step).items()}
    found = {name: array.shape for name, array in arrays.items()}
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    if not missing and not extra and not other:
        return
    shapes = [f"{name} {list(found[name])} there, {list(wanted[name])} in the task" for name in other]
    parts = [
        f"{what} {', '.join(names[:_NAMES_SHOWN])}{' and others' * (len(names) > _NAMES_SHOWN)}"
        for what, names in (("other shapes:", shapes), ("only there:", extra), ("only in the task:", missing))
        if names
    ]
    raise UserError(
        "--model-dir",
        folder,
        f"its dense variables are not those of build_model; {'; '.join(parts)}",
        "restore the layers of build_model or start in another folder",
    )


def assign_dense(arrays: Mapping[str, np.ndarray], step: TrainStep) -> None:
    """Gives the variables of `step` the values of arrays that passed `check_dense_fits`."""
    for name, variable in _variables(step).items():
        array, dtype = arrays[name], np.dtype(variable.dtype.as_numpy_dtype)
        # NumPy stores a type that it does not know, such as bfloat16, as plain bytes.
        variable.assign(array.view(dtype) if array.dtype.kind == "V" else array.astype(dtype))


def _variables(step: TrainStep) -> dict[str, tf.Variable]:
    return _model(step) | _optimizer(step)


def _model(step: TrainStep) -> dict[str, tf.Variable]:
    return {f"model/{name}": variable for name, variable in zip(step.dense.names, step.dense.variables, strict=True)}


def _optimizer(step: TrainStep, hyper: bool = False) -> dict[str, tf.Variable]:
    """Slots by the name of their variable, and the number of updates; with `hyper` hyperparameters as well."""
    variables = step.optimizer.variables
    # The first part of a path is the optimizer's own name, which counts up in a process.
    names = unique_names([variable.path.partition("/")[2] for variable in variables])
    return {
        f"optimizer/{name}": variable.value
        for name, variable in zip(names, variables, strict=True)
        if hyper or name != "learning_rate"
    }
