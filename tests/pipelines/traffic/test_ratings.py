"""Generated ratings: equal for equal settings, and read by all that reads MovieLens' files."""

from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pytest

from millrace.examples.movies import MovieRanking
from millrace.pipelines.traffic.movielens import MovieLensSource
from millrace.pipelines.traffic.ratings import RatingsConfig, write_ratings
from millrace.runtime.errors import UserError
from millrace.training.movielens import is_movielens, read_movielens
from millrace.transforms.batch import record_batch

_SMALL = RatingsConfig(ratings=2000, users=50, movies=80, seed=3)


def test_equal_settings_give_equal_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, config in (("a", _SMALL), ("b", _SMALL), ("c", RatingsConfig(2000, 50, 80, seed=4))):
        write_ratings(tmp_path / name, config)
    for file in ("ratings.csv", "movies.csv"):
        first, again, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert first == again and first != other


def test_trainer_and_replay_read_all_of_them(tmp_path: Path) -> None:
    write_ratings(tmp_path, _SMALL)
    assert is_movielens(tmp_path)
    batch = read_movielens(tmp_path, MovieRanking())
    assert batch.num_rows == len(MovieLensSource(tmp_path)) == 2000
    assert batch.column("genres").null_count == 0
    labels = batch.column(record_batch.LABEL).flatten().to_numpy()
    assert 0.3 < labels.mean() < 0.7, "both labels are common"


def test_ratings_are_half_stars_of_known_users_and_movies_in_time_order(tmp_path: Path) -> None:
    write_ratings(tmp_path, _SMALL)
    ratings, movies = (pa_csv.read_csv(tmp_path / file) for file in ("ratings.csv", "movies.csv"))
    stars = ratings["rating"].to_numpy()
    assert set(np.unique(2 * stars) % 1) == {0.0} and stars.min() >= 0.5 and stars.max() <= 5.0
    assert set(ratings["movieId"].to_pylist()) <= set(movies["movieId"].to_pylist())
    assert np.all(np.diff(ratings["timestamp"].to_numpy()) > 0)
    assert set(ratings["userId"].to_pylist()) <= set(range(1, 51))


@pytest.mark.parametrize("name", ["ratings", "users", "movies"])
def test_a_number_below_one_is_refused_by_the_name_of_its_flag(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--{name}=0: not positive"):
        write_ratings(tmp_path, RatingsConfig(**{name: 0}))
