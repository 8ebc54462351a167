"""Scores batches with an exported model, through Beam's RunInference; `ScoreRows` in Beam YAML.

    scored = requests | ScoreRows("model/exports/standalone/1764000000")

A batch comes back with one more column for each output of the model, `score.<output>`. Its columns are named like the
inputs of the export's serving signature (for a task: `user_id`, `item_id` and the fields of its context) and hold raw
values, as a request to the model server does. The rows that a feed writes cannot be scored: their features are fids.
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
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.record_batch import is_fid_field, is_fid_v1_field
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

        Raises: UserError naming an input without a column, or a column that does not hold one raw value per row.
        """
        import tensorflow as tf

        inputs = {
            argument: tf.constant(_values(batch, spec.name, spec.dtype.name, columns), spec.dtype)
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

    A batch needs a column for each input of the export's serving signature, with one raw value per row: an int64, a
    string or a float32, plain or as a list of at most one; a null or an empty list is a missing value. Columns of fids
    are refused, as a feed's rows have them. A batch without such columns fails the run.
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


def _values(batch: pa.RecordBatch, name: str, dtype: str, columns: Mapping[str, str]) -> np.ndarray:
    """The column of the input `name`, [rows]; `dtype` is a key of `_KINDS`."""
    kind = _KINDS[dtype]
    candidates = [columns[name]] if name in columns else [name, f"context.{name}"]
    found = next((each for each in candidates if each in batch.schema.names), None)
    if found is None:
        problem = f"the batch has no column {' or '.join(candidates)}"
        raise UserError("model input", name, problem, "name the column that has its raw values in `columns`")
    field, column = batch.schema.field(found), batch.column(found)
    if is_fid_field(field) or is_fid_v1_field(field):
        raise _unfit(field, f"holds fids, and the model input {name} takes raw values, one {dtype} per row")
    try:
        column = _one_per_row(column).cast(kind.type)
    except (ValueError, pa.ArrowNotImplementedError) as error:
        raise _unfit(field, f"does not fit the model input {name}, which takes one {dtype} per row") from error
    return pc.fill_null(column, kind.missing).to_numpy(zero_copy_only=False)


def _one_per_row(column: pa.Array) -> pa.Array:
    """The values of a column of lists, null for an empty list; other columns as they are. ValueError for longer lists.

    Sources of files give lists of one for plain columns that Millrace did not write (`tables.to_canonical`).
    """
    if not pa.types.is_list(column.type):
        return column
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if counts.max(initial=0) > 1:
        raise ValueError("a row has several values")
    return column.flatten().take(pa.array(np.cumsum(counts) - 1, mask=counts == 0))


def _unfit(field: pa.Field, problem: str) -> UserError:
    remedy = (
        "score rows of raw values, as requests have them, not the rows of a feed, or name another column in `columns`"
    )
    return UserError(f"column {field.name}", field.type, problem, remedy)
