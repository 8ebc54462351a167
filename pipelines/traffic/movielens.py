"""Replays MovieLens ratings: each is an impression of one movie and, shortly after, a `rate` action with its value."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from millrace.pipelines.traffic.source import RATE, Draw, PlannedActions
from millrace.runtime.errors import UserError

_COLUMNS = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
_YEAR = re.compile(r"\((\d{4})\)\s*$")
# Mean time between seeing a movie's box and rating it, in the replay.
_DELAY_MS = 50
_FIELD = "PATH"


class MovieLensSource:
    """Ratings of a MovieLens folder, or of its `ratings.csv`, in time order.

    The context of an impression holds `rated_at` (seconds, when the rating was really made) and, where `movies.csv`
    knows the movie, `genres` and `year`.

    Raises: UserError when files or columns are missing or cannot be read.
    """

    def __init__(self, path: Path, seed: int = 0) -> None:
        ratings = path / "ratings.csv" if path.is_dir() else path
        table = _read_ratings(ratings)
        order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
        self._users, self._items, self._values, self._times = (table[name].to_numpy()[order] for name in _COLUMNS)
        self._movies = _read_movies(ratings.parent / "movies.csv")
        self._rng = np.random.default_rng(seed)
        self._next = 0

    def __len__(self) -> int:
        return len(self._users)

    def draw(self, count: int, now_ms: int) -> Draw | None:
        """The next ratings, half as many as `count` events and at least one; None after the last."""
        if self._next >= len(self):
            return None
        chosen = slice(self._next, min(len(self), self._next + max(1, count // 2)))
        self._next = chosen.stop
        users, items = self._users[chosen], self._items[chosen]
        rows = len(users)
        actions = PlannedActions(
            rows=np.arange(rows),
            codes=np.full(rows, RATE),
            delays_ms=1 + self._rng.integers(0, 2 * _DELAY_MS, rows),
            values=self._values[chosen],
            in_time=np.ones(rows, bool),
        )
        contexts = [
            self._context(movie, rated_at)
            for movie, rated_at in zip(items.tolist(), self._times[chosen].tolist(), strict=True)
        ]
        unknown = np.full((rows, 1), np.nan)
        return Draw(users, items[:, None], contexts, unknown, np.ones((rows, 1), bool), actions)

    def _context(self, movie: int, rated_at: int) -> str:
        return f'{{"rated_at":{rated_at}{self._movies.get(movie, "")}}}'


def _read_ratings(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(_FIELD, path, "there is no such file", "name a MovieLens folder or its ratings.csv")
    try:
        table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types=_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(
            _FIELD, path, f"cannot be read as ratings ({problem})", "name a MovieLens ratings.csv"
        ) from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        found = ", ".join(table.column_names)
        raise UserError(_FIELD, path, f"no column {missing[0]}, found {found}", f"expected {', '.join(_COLUMNS)}")
    if not table.num_rows or any(table[name].null_count for name in _COLUMNS):
        raise UserError(_FIELD, path, "holds no ratings, or empty values", "name a MovieLens ratings.csv")
    return table


def _read_movies(path: Path) -> dict[int, str]:
    """{movie: `,"genres":...,"year":...`}; {} without the file."""
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"movieId", "title", "genres"} <= set(rows.fieldnames or ()):
            raise UserError(_FIELD, path, "lacks movieId, title or genres", "name a MovieLens folder")
        return {int(row["movieId"]): _movie_context(row["title"], row["genres"]) for row in rows}


def _movie_context(title: str, genres: str) -> str:
    year = _YEAR.search(title)
    return f',"genres":{json.dumps(genres)}' + (f',"year":"{year[1]}"' if year else "")
