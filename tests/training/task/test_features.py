"""Declared slots become tables; wrong declarations are named with what there is."""

import numpy as np
import pytest

from millrace.ops.learning_rate import PolynomialDecay, learning_rate_of
from millrace.ops.table_config import (
    Adagrad,
    Constant,
    Fp16,
    Fp32,
    Ftrl,
    Occurrence,
    PooledFeature,
    RandomUniform,
    Segment,
    Sgd,
    Zeros,
)
from millrace.training.task.features import (
    FeatureColumn,
    FeatureSlot,
    FirstN,
    ReduceMean,
    ReduceSum,
    feature_tables,
    split_slices,
)
from tests.conformance.covers import covers


@covers("emb:L5")
def test_neighbouring_slices_of_equal_rules_and_rates_become_one_segment() -> None:
    slot = FeatureSlot("movie")
    slot.add_feature_slice(5, optimizer=Adagrad(0.001, warmup_steps=10))
    slot.add_feature_slice(2, optimizer=Sgd(), learning_rate=PolynomialDecay(0.01, 100))
    slot.add_feature_slice(2, optimizer=Sgd(), learning_rate=PolynomialDecay(0.01, 100))
    slot.add_feature_slice(2, optimizer=Sgd())
    (table,) = feature_tables([slot])
    segments = table.config.segments
    assert [segment.dim for segment in segments] == [5, 4, 2]
    assert table.unmerged_slice_dims == (5, 2, 2, 2)
    rates = [learning_rate_of(segment.optimizer, segment.learning_rate) for segment in segments]
    assert rates[0] == PolynomialDecay(0.0, 10, end_learning_rate=0.001)
    assert rates[1] == PolynomialDecay(0.01, 100)


def test_slices_that_are_no_neighbours_stay_apart() -> None:
    slot = FeatureSlot("movie")
    for optimizer in (Sgd(), Adagrad(), Sgd()):
        slot.add_feature_slice(2, optimizer=optimizer)
    (table,) = feature_tables([slot])
    assert [segment.dim for segment in table.config.segments] == [2, 2, 2]


@pytest.mark.parametrize(
    "rule", [{"initializer": Constant(1.0)}, {"compressor": Fp32()}, {"optimizer": Sgd()}, {"learning_rate": 0.5}]
)
def test_slices_that_differ_in_one_rule_stay_apart(rule: dict[str, object]) -> None:
    slot = FeatureSlot("movie")
    slot.add_feature_slice(2)
    slot.add_feature_slice(2, **rule)  # type: ignore[arg-type]
    (table,) = feature_tables([slot])
    assert [segment.dim for segment in table.config.segments] == [2, 2]


def test_a_bias_comes_first_with_rules_of_its_own() -> None:
    slot = FeatureSlot("movie", has_bias=True)
    vector = slot.add_feature_slice(8)
    assert (slot.bias.start, slot.bias.end, vector.start, vector.end) == (0, 1, 1, 9)
    assert slot.bias.segment == Segment(1, Ftrl(initial_accumulator_value=1e-6, beta=1.0), Zeros(), Fp32())
    assert vector.segment == Segment(
        8, Adagrad(0.001, initial_accumulator_value=1.0), RandomUniform(-0.05, 0.05), Fp16()
    )


def test_a_bias_does_not_take_the_learning_rate_of_the_vectors() -> None:
    slot = FeatureSlot("movie", has_bias=True, learning_rate=PolynomialDecay(0.1, 10))
    vector = slot.add_feature_slice(2)
    assert slot.bias.segment.learning_rate is None
    assert vector.segment.learning_rate == PolynomialDecay(0.1, 10)
    own = FeatureSlot("own", has_bias=True, bias_learning_rate=0.5)
    assert own.bias.segment.learning_rate == 0.5


def test_a_slot_takes_its_name_from_its_id() -> None:
    assert FeatureSlot(slot_id=17).name == "17"
    assert FeatureSlot("movie", slot_id=17).name == "movie"
    with pytest.raises(ValueError, match="name or a slot_id"):
        FeatureSlot()


def test_admission_and_expiry_go_into_the_table() -> None:
    slot, plain = FeatureSlot("movie", occurrence_threshold=3, expire_days=7.0), FeatureSlot("user")
    slot.add_feature_slice(1)
    plain.add_feature_slice(1)
    tables = feature_tables([slot, plain])
    assert (tables[0].config.occurrence, tables[0].config.expire_days) == (Occurrence(threshold=3), 7.0)
    assert (tables[1].config.occurrence, tables[1].config.expire_days) == (None, 36500.0)


def test_two_slots_of_one_name_are_refused() -> None:
    slots = [FeatureSlot("movie", has_bias=True), FeatureSlot("user", has_bias=True), FeatureSlot("movie")]
    with pytest.raises(ValueError, match="movie is there twice in .*user"):
        feature_tables(slots)


def test_a_slot_without_a_slice_is_refused() -> None:
    with pytest.raises(ValueError, match="'movie' has no slice"):
        feature_tables([FeatureSlot("movie")])


def test_a_slice_of_another_slot_is_refused_with_those_there_are() -> None:
    movie, user = FeatureSlot("movie", has_bias=True), FeatureSlot("user")
    movie.add_feature_slice(4)
    other = user.add_feature_slice(4)
    with pytest.raises(ValueError, match="'watched' reads slot 'movie', not 'user'; its slices are 0:1, 1:5"):
        FeatureColumn(movie, "watched").key(other)


def test_a_bias_that_was_not_declared_is_refused() -> None:
    with pytest.raises(ValueError, match="has_bias=True"):
        _ = FeatureSlot("movie").bias


def test_columns_of_one_slot_share_its_slices_under_keys_of_their_own() -> None:
    slot = FeatureSlot("movie", has_bias=True)
    vector = slot.add_feature_slice(2)
    shown, watched = FeatureColumn(slot, "shown"), FeatureColumn(slot, "watched", FirstN(2))
    assert (shown.combiner, watched.combiner) == (ReduceSum(), FirstN(2))
    (table,) = feature_tables([slot])
    slices = split_slices("watched", np.arange(12).reshape(2, 2, 3), table.unmerged_slice_dims)
    assert slices[watched.key(slot.bias)].tolist() == [[[0], [3]], [[6], [9]]]
    assert slices[watched.key(vector)].tolist() == [[[1, 2], [4, 5]], [[7, 8], [10, 11]]]
    assert shown.key(vector) == "shown:1_3"


def test_a_column_is_a_pooled_feature_of_its_slot() -> None:
    slot = FeatureSlot("movie")
    assert FeatureColumn(slot, "shown").pooled() == PooledFeature("shown", "movie", "sum")
    assert FeatureColumn(slot, "shown", ReduceMean()).pooled() == PooledFeature("shown", "movie", "mean")
    assert FeatureColumn(slot, "shown", FirstN(3)).pooled() == PooledFeature("shown", "movie", "first_n", 3)


def test_embeddings_of_another_width_are_not_split() -> None:
    with pytest.raises(ValueError, match=r"'f' has 3 dimensions, its slices \[1, 1\]"):
        split_slices("f", np.zeros((2, 3)), (1, 1))


@pytest.mark.parametrize("n", [0, -1])
def test_first_n_needs_a_positive_number(n: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FirstN(n)
