"""MovieLens: the one reader of its files, and its ratings as a train batch, made by the functions of the live feed.

The reader stands here because both need it, `train --offline` and `events replay` (`pipelines.traffic.movielens`), and
`pipelines` may import `training`, but not the other way round.
"""

import csv
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from millrace.runtime.errors import UserError
from millrace.training.task import Task
from millrace.transforms.batch import record_batch
from millrace.transforms.feed.config import FeedConfig, LabelRule
from millrace.transforms.feed.train_rows import row_fids

_COLUMNS = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_RATE = "rate"


class Ratings(NamedTuple):
    """Ratings in time order, [n] each: int64 users, movies and Unix seconds, float64 values (0.5 to 5)."""

    users: np.ndarray
    movies: np.ndarray
    values: np.ndarray
    seconds: np.ndarray


class Movie(NamedTuple):
    """What is known of a movie.

    Attributes:
      genres: names with `|` between them.
      year: of its title; None where the title has none.
    """

    genres: str
    year: str | None


def read_ratings(path: Path, field: str) -> Ratings:
    """The ratings of a `ratings.csv` (userId, movieId, rating, timestamp).

    Raises: UserError naming `field` when the file or a column is missing, cannot be read or holds empty values.
    """
    if not path.is_file():
        raise UserError(field, path, "there is no such file", "name a MovieLens folder or its ratings.csv")
    try:
        table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types=_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        problem = f"cannot be read as ratings ({str(error).splitlines()[0]})"
        raise UserError(field, path, problem, "name a MovieLens ratings.csv") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        found = ", ".join(table.column_names)
        raise UserError(field, path, f"no column {missing[0]}, found {found}", f"expected {', '.join(_COLUMNS)}")
    if not table.num_rows or any(table[name].null_count for name in _COLUMNS):
        raise UserError(field, path, "holds no ratings, or empty values", "name a MovieLens ratings.csv")
    order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    return Ratings(*(table[name].to_numpy()[order] for name in _COLUMNS))


def read_movies(path: Path, field: str) -> dict[int, Movie]:
    """{number: movie} of a `movies.csv` (movieId, title, genres); {} without the file.

    Raises: UserError naming `field` when a column is missing or a number is none.
    """
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"movieId", "title", "genres"} <= set(rows.fieldnames or ()):
            raise UserError(field, path, "lacks movieId, title or genres", "name a MovieLens folder")
        try:
            return {int(row["movieId"]): Movie(row["genres"], _year_of(row["title"])) for row in rows}
        except ValueError as error:
            raise UserError(field, path, f"cannot be read ({error})", "name a MovieLens folder") from error


def _year_of(title: str) -> str | None:
    year = _YEAR.search(title)
    return year[1] if year else None


def is_movielens(path: Path) -> bool:
    """Whether `path` is a folder with `ratings.csv`."""
    return (path / "ratings.csv").is_file()


def read_movielens(path: Path, task: Task) -> pa.RecordBatch:
    """All ratings as one train batch, in time order; each rating is one impression with one `rate` action.

    `context.genres` and `context.year` come from `movies.csv`; a task may declare features of them.

    Args:
      path: folder with `ratings.csv` and, if features read the context, `movies.csv`.

    Raises: UserError naming `--input` for files that are missing or cannot be read.
    """
    ratings = read_ratings(path / "ratings.csv", "--input")
    rows = len(ratings.users)
    config = task.feed_config()
    columns = {
        "user_id": pa.array(ratings.users),
        "item_id": pa.array(ratings.movies),
        **_context(path / "movies.csv", ratings.movies, config),
    }
    fids = row_fids(pa.RecordBatch.from_pydict(columns), config.features)
    ones = np.ones(rows, np.float32)
    flat: dict[str, object] = {
        record_batch.LABEL: _labels(config.labels, ratings.values),
        record_batch.WEIGHT: ones,
        record_batch.SAMPLE_RATE: ones,
        record_batch.UID: columns["user_id"],
        record_batch.ITEM_ID: columns["item_id"],
        record_batch.REQ_ID: pa.array([""] * rows),
        record_batch.REQ_TIME: ratings.seconds,
        record_batch.EVENT_TIME_MS: ratings.seconds * 1000,
        record_batch.ACTIONS: _one_each(pa.array([_RATE] * rows)),
        record_batch.SOURCE_PARTITION: np.zeros(rows, np.int64),
        record_batch.SOURCE_OFFSET: np.arange(rows),
        record_batch.SOURCE_ROW: np.zeros(rows, np.int32),
    }
    schema = record_batch.train_schema([feature.name for feature in config.features])
    arrays = [*fids.columns, *(pa.array(flat[f.name], f.type) for f in record_batch.METADATA_FIELDS)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _context(path: Path, movies: np.ndarray, config: FeedConfig) -> dict[str, pa.Array]:
    """The context columns that the features read; null where a movie is unknown."""
    wanted = config.context_fields()
    if not wanted:
        return {}
    known = read_movies(path, "--input")
    if not known:
        raise UserError("--input", path, f"missing or empty, and features read {', '.join(wanted)}", "give its folder")
    different, inverse = np.unique(movies, return_inverse=True)
    found = [known[movie]._asdict() if movie in known else {} for movie in different.tolist()]
    result = {}
    for name in wanted:
        values = pa.array([movie.get(name) for movie in found], pa.string())
        result[f"context.{name}"] = values.take(pa.array(inverse))
    return result


def _labels(rules: tuple[LabelRule, ...], ratings: np.ndarray) -> pa.ListArray:
    """list<float32>, one label per rule: 1.0 when the rating meets it."""
    hits = [
        (ratings >= (rule.min_value if rule.min_value is not None else -np.inf)) & (_RATE in rule.actions)
        for rule in rules
    ]
    values = np.stack(hits, axis=1).astype(np.float32)
    offsets = np.arange(len(ratings) + 1, dtype=np.int32) * len(rules)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def _one_each(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32)), values)
