"""Offline: the online step over stored rows, and no row helps its own prediction."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.examples.movies import MovieContent, MovieRanking
from millrace.runtime.errors import UserError
from millrace.training.offline_trainer import quality_by_delay, read_input, train
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import hash_strings
from tests.fakes.train_blocks import make_batch

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "movielens-latest-small"
TASK = FeedRanking()


def coin_labels(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows with labels that nothing predicts."""
    labels = np.random.default_rng(7).integers(0, 2, batch.num_rows).astype(np.float32)
    column = pa.array([[label] for label in labels], pa.list_(pa.float32()))
    index = batch.schema.get_field_index(record_batch.LABEL)
    return batch.set_column(index, batch.schema.field(index), column)


def test_a_learnable_world_is_learned() -> None:
    result, step = train(TASK, make_batch(TASK, 0, 2500, audit=False), batch_size=256)
    assert result.rows == 10_000
    assert result.auc_last_third > 0.72
    assert 0.9 < result.calibration < 1.1
    assert int(step.global_step) == -(-10_000 // 256)


def test_coins_are_not_predicted_although_each_batch_is_learned_twice_in_slices() -> None:
    result, _ = train(
        TASK, coin_labels(make_batch(TASK, 0, 2500, audit=False)), batch_size=100, micro_batch=8, epochs=2
    )
    assert 0.47 < result.auc < 0.53


def test_rows_that_are_never_learned_in_time_are_predicted_blindly() -> None:
    data = make_batch(TASK, 0, 500, audit=False)
    result, step = train(TASK, data, batch_size=100, delay_rows=5000)
    assert result.auc == 0.5
    assert step.store.sizes()["user"] == 0


def test_parquet_of_the_feed_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    whole = make_batch(TASK, 0, 40, audit=False)
    for i in range(4):
        pq.write_table(pa.Table.from_batches([whole.slice(i * 40, 40)]), tmp_path / f"part-{i}.parquet")
    assert read_input(tmp_path, TASK).equals(whole)


def test_dead_letters_beside_the_rows_are_not_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_batches([make_batch(TASK, 0, 10, audit=False)]), tmp_path / "part.parquet")
    (tmp_path / "dead-letters").mkdir()
    pq.write_table(pa.table({"value": [b"{"]}), tmp_path / "dead-letters" / "events.impressions-0.parquet")
    assert read_input(tmp_path, TASK).num_rows == 40


def test_parquet_without_a_feature_is_a_users_error_that_names_it(tmp_path: Path) -> None:
    table = pa.Table.from_batches([make_batch(TASK, 0, 4, audit=False)]).drop_columns(["hour"])
    pq.write_table(table, tmp_path / "part.parquet")
    with pytest.raises(UserError, match="hour"):
        read_input(tmp_path, TASK)


def test_an_empty_folder_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--input"):
        read_input(tmp_path, TASK)


def write_movielens(folder: Path) -> None:
    with open(folder / "ratings.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("userId", "movieId", "rating", "timestamp"), (1, 10, 4.0, 300), (2, 11, 3.5, 100), (1, 12, 5, 200)]
        )
    with open(folder / "movies.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("movieId", "title", "genres"), (10, "Blå, the (1993)", "Drama"), (11, "No year", "Drama|War")]
        )


def test_ratings_become_rows_in_time_order_with_four_and_better_as_positive(tmp_path: Path) -> None:
    write_movielens(tmp_path)
    batch = read_input(tmp_path, MovieRanking())
    assert batch.column(record_batch.ITEM_ID).to_pylist() == [11, 12, 10]
    assert batch.column(record_batch.LABEL).to_pylist() == [[0.0], [1.0], [1.0]]
    assert batch.column("item").to_pylist() == [[2 << 48 | item] for item in (11, 12, 10)]


def test_genres_and_years_come_from_the_movies_file_and_may_be_missing(tmp_path: Path) -> None:
    write_movielens(tmp_path)
    batch = read_input(tmp_path, MovieContent())
    war, drama = hash_strings(pa.array(["Drama|War", "Drama"])).tolist()
    assert batch.column("genres").to_pylist() == [[3 << 48 | war], [], [3 << 48 | drama]]
    assert [len(year) for year in batch.column("year").to_pylist()] == [0, 0, 1]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the MovieLens data is not on this machine")
def test_freshness_is_worth_more_than_any_model_on_real_ratings() -> None:
    task, content = MovieRanking(), MovieContent()
    points = quality_by_delay(task, read_input(DATA, task), (256, 1024, 33_000), content, read_input(DATA, content))
    fresh, late, stale, without = (float(point["auc_last_third"]) for point in points)
    assert fresh >= 0.74
    assert fresh > late > stale > 0.6
    assert without < stale
