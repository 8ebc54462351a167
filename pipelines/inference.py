"""Scores batches with an exported model, through Beam's RunInference; `ScoreRows` in Beam YAML.

    scored = rows | ScoreRows("model/exports/standalone/1764000000")

A batch comes back with one more column for each output of the model, `score.<output>`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.ml.inference.base import ModelHandler, RunInference

from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch  # noqa: F401 (the coder is registered)
from millrace.transforms.beam import coder  # noqa: F401 (the coder is registered)

SCORE = "score."
_SIGNATURE = "serving_default"


class _Kind(NamedTuple):
    """How a column becomes an input: its Arrow type, and the value that the model takes for a missing one (a null)."""

    type: pa.DataType
    missing: int | float | bytes


_KINDS = {
    "int64": _Kind(pa.int64(), -1),
    "string": _Kind(pa.binary(), b""),
    "float32": _Kind(pa.float32(), 0.0),
}


class ExportedModel:
    """A loaded export; its tables are freed with it.

    Args:
      folder: a version, as `millrace export` writes it.

    Raises: UserError when there is no export, or when an input or output is not one value per row.
    """

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        from millrace.ops import library

        library.load()
        try:
            self._model = tf.saved_model.load(str(folder))
        except (OSError, ValueError, tf.errors.OpError) as error:
            problem = f"TensorFlow cannot load it: {str(error).splitlines()[0]}"
            raise UserError("export", folder, problem, "give the folder of an exported version") from error
        if _SIGNATURE not in self._model.signatures:
            raise UserError("export", folder, f"it has no signature {_SIGNATURE}", "export it with one")
        self._function = self._model.signatures[_SIGNATURE]
        self._inputs = self._function.structured_input_signature[1]
        _check_columns(folder, self._inputs, self._function.structured_outputs)

    def score(self, batch: pa.RecordBatch, columns: Mapping[str, str]) -> pa.RecordBatch:
        """`batch` with a column `score.<output>` for each output, in the order of their names.

        Args:
          columns: {input: column} of inputs that do not have their column's name.

        Raises: ValueError naming an input without a column, or a column of another type.
        """
        import tensorflow as tf

        inputs = {
            argument: tf.constant(_values(batch, spec.name, _KINDS[spec.dtype.name], columns), spec.dtype)
            for argument, spec in self._inputs.items()
        }
        for name, values in sorted(self._function(**inputs).items()):
            scores = pa.array(values.numpy())
            batch = record_batch.with_column(batch, pa.field(f"{SCORE}{name}", scores.type), scores)
        return batch


class ScoreRows(beam.PTransform):
    """Batches with a column `score.<output>` for each output of an exported model.

    Args:
      export, columns: as of `ExportHandler`.

    A batch without a column for an input, or with one of another type, fails the run.
    """

    def __init__(self, export: str, columns: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._handler = ExportHandler(export, columns)

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        return batches | "RunInference" >> RunInference(self._handler)


class ExportHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, ExportedModel]):
    """Model handler of RunInference whose elements are batches.

    Args:
      export: folder of an exported version; a side input of RunInference may name newer ones.
      columns: {input: column} of inputs whose column has neither their name nor `context.<name>`.
    """

    def __init__(self, export: str | Path, columns: Mapping[str, str] | None = None) -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)  # an element holds many rows already
        self._export, self._columns = Path(export), dict(columns or {})

    def load_model(self) -> ExportedModel:
        return ExportedModel(self._export)

    def run_inference(
        self,
        batch: Sequence[pa.RecordBatch],
        model: ExportedModel,
        inference_args: dict[str, Any] | None = None,
    ) -> list[pa.RecordBatch]:
        return [model.score(rows, self._columns) for rows in batch]

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        if inference_args:
            raise UserError("inference_args", inference_args, "an export takes none", "leave them out")

    def update_model_path(self, model_path: str | None = None) -> None:
        self._export = Path(model_path) if model_path else self._export

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        return sum(rows.nbytes for rows in batch)

    def get_metrics_namespace(self) -> str:
        return telemetry.namespace("pipelines", "inference")


def _check_columns(folder: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """UserError unless every input and output has one value per row, and inputs are of types that a column has."""
    for name, spec in [*inputs.items(), *outputs.items()]:
        if spec.shape.rank != 1:
            problem = f"{name} has shape {spec.shape}, not one value per row"
            raise UserError("export", folder, problem, "export a model of flat columns")
    for spec in inputs.values():
        if spec.dtype.name not in _KINDS:
            problem = f"input {spec.name} is {spec.dtype.name}"
            raise UserError("export", folder, problem, f"export a model that takes {', '.join(_KINDS)}")


def _values(batch: pa.RecordBatch, name: str, kind: _Kind, columns: Mapping[str, str]) -> np.ndarray:
    """The column of the input `name`, [rows]."""
    candidates = [columns[name]] if name in columns else [name, f"context.{name}"]
    column = next((c for each in candidates if (c := record_batch.column_of(batch, each)) is not None), None)
    if column is None:
        raise ValueError(f"model input {name}: the batch has no column {' or '.join(candidates)}")
    try:
        column = column.cast(kind.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"model input {name}: a column of {column.type} is no {kind.type}") from error
    return pc.fill_null(column, kind.missing).to_numpy(zero_copy_only=False)
