"""Replays MovieLens ratings, each as an impression of one movie and, shortly after it, a `rate` action."""

import json
from pathlib import Path

import numpy as np

from millrace.pipelines.traffic.source import RATE, PlannedActions, PlannedImpressions
from millrace.training.movielens import Movie, read_movies, read_ratings

# Mean time between seeing a movie and rating it, in the replay: below a second, so that any window takes the rating.
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
        self._ratings = read_ratings(ratings, _FIELD)
        movies = read_movies(ratings.parent / "movies.csv", _FIELD)
        self._movies = {number: _movie_context(movie) for number, movie in movies.items()}
        self._rng = np.random.default_rng(seed)
        self._next = 0

    def __len__(self) -> int:
        return len(self._ratings.users)

    def draw(self, count: int, now_ms: int) -> PlannedImpressions | None:
        """The next ratings, half as many as `count` events and at least one; None after the last."""
        if self._next >= len(self):
            return None
        chosen = slice(self._next, min(len(self), self._next + max(1, count // 2)))
        self._next = chosen.stop
        users, items = self._ratings.users[chosen], self._ratings.movies[chosen]
        rows = len(users)
        actions = PlannedActions(
            rows=np.arange(rows),
            codes=np.full(rows, RATE),
            delays_ms=1 + self._rng.integers(0, 2 * _DELAY_MS, rows),
            values=self._ratings.values[chosen],
            in_time=np.ones(rows, bool),
        )
        contexts = [
            self._context(movie, rated_at)
            for movie, rated_at in zip(items.tolist(), self._ratings.seconds[chosen].tolist(), strict=True)
        ]
        unknown = np.full((rows, 1), np.nan)
        return PlannedImpressions(users, items[:, None], contexts, unknown, np.ones((rows, 1), bool), actions)

    def _context(self, movie: int, rated_at: int) -> str:
        return f'{{"rated_at":{rated_at}{self._movies.get(movie, "")}}}'


def _movie_context(movie: Movie) -> str:
    """`,"genres":...,"year":...`, the end of a JSON object."""
    year = f',"year":"{movie.year}"' if movie.year else ""
    return f',"genres":{json.dumps(movie.genres)}{year}'
