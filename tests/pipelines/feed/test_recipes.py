"""Recipes in a feed: the rows that the chain alone makes, refused mistakes, and a partition of only bad records."""

import dataclasses
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.cli import main
from millrace.pipelines.feed.launch import FeedFailedError, run_feed
from millrace.pipelines.feed.options import FeedOptions, FileSettings, Tuning
from millrace.pipelines.feed.rows_stage import RowsStageFactory
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.provenance import ROWS_PER_RECORD, provenance_of
from millrace.transforms.recipe.chain import TransformChain
from tests.pipelines.feed.test_event_feed import World, config, make_world, read_rows, run_files, write_lines

_RECIPE = """
seed: 5
action_ids: {click: 1, like: 2}
steps:
  - none_of: {predicates: [{filter_by_value: {field_name: uid, op: eq, int_operand: [3]}}]}
  - negative_sample: {drop_rate: 0.5, threshold: 0.5, correct_sample_rate: true}
  - reweight: {action_priority: [2, 1], weights: [{action: 2, weight: 3, label: 1}], emit: COPIES, max_replicas: 4}
"""
_NEGATIVES = """
  - generate_negatives: {neg_num: 2, item_features: [item], start_num: 5, negative_label: 0}
"""


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def _fed(folder: Path, world: World, name: str, recipe: str, shards: int = 1) -> pa.Table:
    """Rows of a run on Direct."""
    folder.mkdir(exist_ok=True)
    write_lines(folder / "impressions.json", world.impressions)
    write_lines(folder / "actions.json", world.actions)
    source = FileSettings(str(folder / "impressions.json"), str(folder / "actions.json"))
    options = FeedOptions(
        config(),
        source,
        folder / name,
        "direct",
        tuning=Tuning(shards),
        recipe=TransformChain.parse(recipe).config.SerializeToString(),
    )
    run_feed(options, threading.Event())
    return read_rows(folder / name)


def _sorted(rows: pa.Table) -> pa.Table:
    names = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)
    return rows.sort_by([(name, "ascending") for name in names])


def test_a_feed_gives_the_rows_that_the_chain_makes_of_its_rows(world: World, tmp_path: Path) -> None:
    plain = _fed(tmp_path, world, "plain", "steps: []")
    fed = _fed(tmp_path, world, "fed", _RECIPE)
    (batch,) = plain.combine_chunks().to_batches()
    expected = TransformChain.parse(_RECIPE).process(batch)
    assert fed.schema == plain.schema
    assert _sorted(fed).to_pylist() == _sorted(pa.Table.from_batches([expected])).to_pylist()
    assert 0 < fed.num_rows < plain.num_rows


def test_one_seed_gives_the_same_bytes_with_generated_negatives(world: World, tmp_path: Path) -> None:
    _fed(tmp_path, world, "first", _RECIPE + _NEGATIVES)
    _fed(tmp_path, world, "again", _RECIPE + _NEGATIVES)
    first, again = (sorted((tmp_path / name).glob("*.parquet")) for name in ("first", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    rows = read_rows(tmp_path / "first")
    derived = [row for row in rows[record_batch.SOURCE_ROW].to_pylist() if row >= ROWS_PER_RECORD]
    assert len(derived) > 50


def test_a_bounded_feed_fills_its_pools_in_a_first_pass_when_the_recipe_asks_for_it(
    world: World, tmp_path: Path
) -> None:
    cold = _fed(tmp_path, world, "cold", "steps:" + _NEGATIVES)
    warm = _fed(tmp_path, world, "warm", "steps:" + _NEGATIVES.replace("neg_num: 2", "neg_num: 2, warm: true"))
    originals = [row for row in cold[record_batch.SOURCE_ROW].to_pylist() if row < ROWS_PER_RECORD]
    assert cold.num_rows < warm.num_rows <= 3 * len(originals)


def test_however_many_shards_join_the_rows_of_a_recipe_without_state_are_the_same(world: World, tmp_path: Path) -> None:
    one, three = (_fed(tmp_path, world, f"shards-{count}", _RECIPE, count) for count in (1, 3))
    assert _sorted(one).to_pylist() == _sorted(three).to_pylist()


def test_what_the_recipe_drops_is_counted(world: World, tmp_path: Path) -> None:
    stage = RowsStageFactory(config(), TransformChain.parse(_RECIPE).config.SerializeToString(), joined=False)()
    plain = _fed(tmp_path, world, "plain", "steps: []")
    (batch,) = plain.combine_chunks().to_batches()
    rows = stage.process(batch)
    counts = stage.take_counts()
    assert counts["recipe"] == batch.num_rows - len({*zip(*_keys(rows), strict=True)})
    assert counts["positive"] + counts["negative"] == rows.num_rows


def _keys(rows: pa.RecordBatch) -> list[list[int]]:
    partition, offset, row = provenance_of(rows)
    return [partition.tolist(), offset.tolist(), (row % ROWS_PER_RECORD).tolist()]


def test_a_file_of_nothing_but_bad_records_stops_the_feed_and_is_named(world: World, tmp_path: Path) -> None:
    bad = World([line[:-9] for line in world.impressions] * 22, world.actions)
    with pytest.raises(
        FeedFailedError, match=r"events.impressions\[\d\]: .* cannot be read \(malformed_json .*--max-drop"
    ):
        run_files(tmp_path, bad)
    assert not list((tmp_path / "rows").glob("*.parquet"))


def test_a_wrong_recipe_is_refused_with_its_line_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps:\n  - negative_sample:\n      drop_rate: 1.5\n", "utf-8")
    code = main.main(
        ["feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--kafka", "x:1", "--recipe", str(recipe)]
    )
    assert code == 2
    assert f"{recipe}:3: steps[0].negative_sample.drop_rate=1.5" in capsys.readouterr().err


def test_the_example_recipe_fits_its_task() -> None:
    path = Path(__file__).resolve().parents[3] / "examples" / "recipes" / "full.yaml"
    assert TransformChain.read(str(path)).stateful


def test_a_parquet_file_of_the_feed_is_a_canonical_train_block(world: World, tmp_path: Path) -> None:
    _fed(tmp_path, world, "rows", _RECIPE + _NEGATIVES)
    for path in (tmp_path / "rows").glob("*.parquet"):
        for batch in pq.read_table(path).combine_chunks().to_batches():
            train_check.validate_train_batch(batch, ["user", "item"], 1)


def test_a_feed_refuses_a_recipe_whose_last_step_gives_no_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "steps: [{shard_fids: {feature_configs: {feature_configs: {user: {table: user, slice_dims: [8]}}}}}]"
    with pytest.raises(UserError, match="recipe=0.shard_fids: ends with shard_fids, .* but a train block holds rows"):
        RowsStageFactory(config(), TransformChain.parse(text).config.SerializeToString())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, "utf-8")
    code = main.main(
        ["feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--kafka", "x:1", "--recipe", str(recipe)]
    )
    assert code == 2
    assert f"--recipe={recipe}: ends with shard_fids" in capsys.readouterr().err


def test_early_negatives_and_the_recipe_together_make_no_more_rows_than_provenance_can_tell_apart() -> None:
    text = "steps: [{generate_negatives: {neg_num: 200, item_features: [item]}}]"
    recipe = TransformChain.parse(text).config.SerializeToString()
    RowsStageFactory(config(), recipe)
    with pytest.raises(UserError, match="recipe=201 rows: .* stay within 256 in all"):
        RowsStageFactory(dataclasses.replace(config(), early_negatives=True), recipe)
