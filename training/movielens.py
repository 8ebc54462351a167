"""MovieLens rating files as canonical batches in time order, through the same functions as the live feed."""

import csv
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from millrace.runtime.errors import UserError
from millrace.training.task import Task
from millrace.transforms.batch import record_batch
from millrace.transforms.feed.config import FeedConfig, LabelRule, extract_fids

_YEAR = re.compile(r"\((\d{4})\)\s*$")
_RATE = "rate"


def is_movielens(path: Path) -> bool:
    """Whether `path` is a folder with `ratings.csv`."""
    return (path / "ratings.csv").is_file()


def read_movielens(path: Path, task: Task) -> pa.RecordBatch:
    """All ratings as one train batch, in time order; each rating is one impression with one `rate` action.

    `context.genres` and `context.year` come from `movies.csv`; a task may declare features of them.

    Args:
      path: folder with `ratings.csv` (userId, movieId, rating, timestamp) and `movies.csv` (movieId, title, genres).
    """
    ratings = _read_ratings(path / "ratings.csv")
    rows = ratings.num_rows
    config = task.feed_config()
    seconds = ratings["timestamp"].to_numpy()
    columns = {
        "user_id": ratings["userId"].combine_chunks(),
        "item_id": ratings["movieId"].combine_chunks(),
        **_context(path / "movies.csv", ratings["movieId"].to_numpy(), config),
    }
    fids = extract_fids(pa.RecordBatch.from_pydict(columns), config.features)
    ones = np.ones(rows, np.float32)
    flat: dict[str, object] = {
        record_batch.LABEL: _labels(config.labels, ratings["rating"].to_numpy()),
        record_batch.WEIGHT: ones,
        record_batch.SAMPLE_RATE: ones,
        record_batch.UID: columns["user_id"],
        record_batch.ITEM_ID: columns["item_id"],
        record_batch.REQ_ID: pa.array([""] * rows),
        record_batch.REQ_TIME: seconds,
        record_batch.EVENT_TIME_MS: seconds * 1000,
        record_batch.ACTIONS: _one_each(pa.array([_RATE] * rows)),
        record_batch.SOURCE_PARTITION: np.zeros(rows, np.int32),
        record_batch.SOURCE_OFFSET: np.arange(rows),
        record_batch.SOURCE_ROW: np.zeros(rows, np.int32),
    }
    schema = record_batch.train_schema([feature.name for feature in config.features])
    arrays = [*fids.columns, *(pa.array(flat[f.name], f.type) for f in record_batch.METADATA_FIELDS)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _read_ratings(path: Path) -> pa.Table:
    types = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
    try:
        table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types=types))
        order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
        return table.select(list(types)).take(pa.array(order)).combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError("--input", path, f"not a MovieLens rating file ({error})", "name its folder") from error


def _context(path: Path, items: np.ndarray, config: FeedConfig) -> dict[str, pa.Array]:
    """The context columns that the features read; null where a movie is unknown."""
    wanted = config.context_fields()
    if not wanted:
        return {}
    known: dict[str, dict[int, str]] = {"genres": {}, "year": {}}
    with open(path, encoding="utf-8", newline="") as file:
        for movie, title, genres in list(csv.reader(file))[1:]:
            known["genres"][int(movie)] = genres
            year = _YEAR.search(title)
            if year:
                known["year"][int(movie)] = year[1]
    movies, inverse = np.unique(items, return_inverse=True)
    result = {}
    for name in wanted:
        values = pa.array([known.get(name, {}).get(movie) for movie in movies.tolist()], pa.string())
        result[f"context.{name}"] = values.take(pa.array(inverse))
    return result


def _labels(rules: tuple[LabelRule, ...], ratings: np.ndarray) -> pa.ListArray:
    """list<float32>, one label a rule: 1.0 when the rating action meets it."""
    hits = [
        (ratings >= (rule.min_value if rule.min_value is not None else -np.inf)) & (_RATE in rule.actions)
        for rule in rules
    ]
    values = np.stack(hits, axis=1).astype(np.float32)
    offsets = np.arange(len(ratings) + 1, dtype=np.int32) * len(rules)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def _one_each(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32)), values)
