"""Ratings are replayed so slowly that they outlast the run."""

from pathlib import Path

from millrace.cli.loop.scenario import Scenario, movielens


def _rate(chosen: Scenario) -> float:
    return float(chosen.producer[chosen.producer.index("--rate") + 1])


def test_ratings_last_half_as_long_again_as_the_run_and_a_given_rate_stays(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "1,2,3.5,4\n" * 3000)
    chosen = movielens(tmp_path, None, 100.0)
    assert (_rate(chosen), chosen.rows) == (40.0, 3000)  # two events per rating in 150 s
    assert _rate(movielens(tmp_path, 7.0, 100.0)) == 7.0
