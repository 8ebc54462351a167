"""A whole recipe against the row-wise references of its steps, one after the other."""

from typing import Any

import numpy as np
import pytest

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.recipe.chain import TransformChain
from millrace.transforms.recipe.text import parse_recipe
from millrace.transforms.steps.sharding.shard_layout import ShardLayout
from millrace.transforms.steps.sharding.sharded_batch import ShardedFids
from tests.benchmarks.bench_chain import example_batch, recipe
from tests.reference.chain_reference import ReferenceChain

Row = dict[str, Any]


@pytest.mark.parametrize("features", [3, 8])
def test_the_recipe_of_the_benchmark_makes_what_the_references_make_row_by_row(features: int) -> None:
    config = parse_recipe(recipe(features)).config
    before = pb.TransformConfig(seed=config.seed, configs=config.configs[:-1])
    whole, unsharded = TransformChain(config), TransformChain(before)
    batches = [example_batch(number, features).slice(0, 1000) for number in range(2)]
    reference = ReferenceChain(config, batches[0].schema)
    layout = ShardLayout(config.configs[-1].basic_config.shard_fids.feature_configs, 4, 5)
    generated = 0
    for batch in batches:
        rows = reference.rows(batch.to_pylist())
        assert unsharded.process(batch).to_pylist() == [_in_float32(row) for row in rows]
        expected = reference.sharded(rows)
        sharded = ShardedFids.from_record_batch(whole.process(batch), layout)
        assert sharded.fid_offset.tolist() == expected.fid_offset
        assert sharded.feature_offset.tolist() == expected.feature_offset
        for (table, shard), fids in expected.fid_lists.items():
            assert sharded.fids_of(table, shard).tolist() == fids
        generated += sum(row["__LABEL__"] == [-1.0] for row in rows)
    assert generated > 50


def _in_float32(row: Row) -> Row:
    return row | {"__WEIGHT__": float(np.float32(row["__WEIGHT__"]))}
