"""Writes synthetic ratings as files in MovieLens' format, for the examples: a data set that nobody has to download."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from millrace.runtime.errors import UserError

_GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi")
_FIRST_SECOND = 1_500_000_000  # of the first rating: any time in the past will do
_MEAN, _NOISE = 3.5, 0.6  # of a rating, in stars: about half of the ratings are 4 or better, as in MovieLens
# Ratings of one user in a row, on average: people rate in bursts, and a model that learns fast gains by it.
_SESSION_RATINGS = 25
_POPULARITY = 0.8  # exponent of Zipf's law: a tenth of the movies gets a third of the ratings


@dataclass(frozen=True)
class RatingsConfig:
    """How many `ratings` of `users` for `movies`; equal settings, seed included, give equal files."""

    ratings: int = 20_000
    users: int = 400
    movies: int = 800
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for a number below 1."""
        for name in ("ratings", "users", "movies"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}", getattr(self, name), "not positive", "give 1 or more")


def write_ratings(folder: Path, config: RatingsConfig) -> None:
    """Writes `ratings.csv` (userId, movieId, rating, timestamp) and `movies.csv` (movieId, title, genres).

    Every user and movie has tastes and a bias of its own, so that a model that knows both predicts better than one
    that knows only the genre.

    Raises: UserError when a number is below 1.
    """
    config.check()
    rng = np.random.default_rng(config.seed)
    tastes = rng.normal(0.0, 0.6, (config.users, len(_GENRES)))
    traits = rng.normal(0.0, 0.6, (config.movies, len(_GENRES)))
    user_bias, movie_bias = rng.normal(0.0, 0.4, config.users), rng.normal(0.0, 0.4, config.movies)
    users = _sessions(rng, config)
    movies = _popular_movies(rng, config)
    stars = _MEAN + user_bias[users] + movie_bias[movies] + np.sum(tastes[users] * traits[movies], axis=1)
    stars = np.clip(np.round(2 * (stars + rng.normal(0.0, _NOISE, config.ratings))) / 2, 0.5, 5.0)
    times = _FIRST_SECOND + np.cumsum(rng.integers(1, 60, config.ratings))
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"userId": users + 1, "movieId": movies + 1, "rating": stars, "timestamp": times})
    pa_csv.write_csv(table, folder / "ratings.csv")
    pa_csv.write_csv(_movie_table(rng, traits), folder / "movies.csv")


def _sessions(rng: np.random.Generator, config: RatingsConfig) -> np.ndarray:
    """int64 [ratings]: the user of each rating; one user gives several ratings in a row."""
    lengths = rng.geometric(1 / _SESSION_RATINGS, config.ratings)
    return np.repeat(rng.integers(0, config.users, config.ratings), lengths)[: config.ratings]


def _popular_movies(rng: np.random.Generator, config: RatingsConfig) -> np.ndarray:
    """int64 [ratings]: the movie of each rating, drawn by popularity."""
    weights = 1.0 / np.arange(1, config.movies + 1) ** _POPULARITY
    return rng.permutation(config.movies)[rng.choice(config.movies, config.ratings, p=weights / weights.sum())]


def _movie_table(rng: np.random.Generator, traits: np.ndarray) -> pa.Table:
    """A movie's genres are its two strongest traits."""
    numbers = range(1, len(traits) + 1)
    years = rng.integers(1950, 2019, len(traits)).tolist()
    strongest = np.sort(np.argsort(-traits, axis=1)[:, :2], axis=1)
    titles = [f"Movie {number} ({year})" for number, year in zip(numbers, years, strict=True)]
    genres = ["|".join(_GENRES[place] for place in places) for places in strongest.tolist()]
    return pa.table({"movieId": list(numbers), "title": titles, "genres": genres})
