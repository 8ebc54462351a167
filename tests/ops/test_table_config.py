"""Configuration of tables: what is refused, and the text form that the ops take."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from millrace.ops import library
from millrace.ops.table_config import (
    Adagrad,
    Adam,
    BatchSoftmax,
    Constant,
    Fp16,
    Int8,
    Occurrence,
    PolynomialDecay,
    PooledFeature,
    RandomUniform,
    Segment,
    Sgd,
    SlidingFilter,
    TableConfig,
    Zeros,
)
from tests.fakes.stores import open_store
from tests.reference.every_rule import TABLES


def test_a_table_of_one_segment_is_given_by_its_fields() -> None:
    table = TableConfig("t", 4, Adam(), Zeros(), compressor=Fp16())
    assert table.segments == (Segment(4, Adam(), Zeros(), Fp16()),)
    assert table == TableConfig("t", segments=(Segment(4, Adam(), Zeros(), Fp16()),))


def test_a_table_of_several_segments_has_all_their_dims() -> None:
    table = TableConfig("t", segments=(Segment(1, None), Segment(3, Adagrad()), Segment(2)))
    assert (table.dim, table.optimizer) == (6, None)
    assert table.trains


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: TableConfig("../x", 1), "table name '../x' must be 1 to 64 letters"),
        (lambda: TableConfig("", 1), "table name ''"),
        (lambda: TableConfig(".x", 1), "not starting with '.'"),
        (lambda: TableConfig("x" * 129, 1), "table name"),
        (lambda: TableConfig("x"), "table 'x': dim must be an integer of at least 1, not 0"),
        (lambda: TableConfig("x", 1.5), "dim must be an integer of at least 1, not 1.5"),
        (lambda: TableConfig("x", 1, optimizer="adam"), "table 'x': segment: optimizer must be one of Sgd, .*'adam'"),
        (lambda: TableConfig("x", 1, initializer=None), "initializer must be one of Zeros, .* not None"),
        (lambda: TableConfig("x", 1, compressor="fp8"), "compressor must be one of Fp32, .* not 'fp8'"),
        (lambda: TableConfig("x", 1, seed=-1), r"seed must be in \[0, 2\^64\), not -1"),
        (lambda: TableConfig("x", 1, seed=1 << 64), "seed must be"),
        (lambda: TableConfig("x", 1, seed=1.5), "seed must be"),
        (lambda: TableConfig("x", 2, segments=(Segment(1),)), "dim is 2, its segments have 1: leave dim out"),
        (lambda: TableConfig("x", 1, non_finite="drop"), "non_finite must be one of error, skip, clip, not 'drop'"),
        (lambda: TableConfig("x", 1, non_finite="clip"), "gradient_limit must be above 0, and finite to clip, not inf"),
        (lambda: TableConfig("x", 1, gradient_limit=0.0), "gradient_limit must be above 0"),
        (lambda: TableConfig("x", 1, gradient_limit=math.nan), "gradient_limit must be above 0"),
        (lambda: TableConfig("x", 1, skip_zero=True), "skip_zero is for tables that serve"),
        (lambda: TableConfig("x", 1, occurrence=SlidingFilter()), "occurrence must be an Occurrence or None"),
        (lambda: TableConfig("x", 1, expire_days=-1.0), "expire_days must be finite and not negative, not -1.0"),
        (lambda: TableConfig("x", 1, expire_days=math.inf), "expire_days must be finite"),
        (lambda: TableConfig("x", 1, slot_expire_days={1: math.nan}), "expire_days must be finite"),
        (lambda: TableConfig("x", 1, slot_expire_days={32768: 1}), r"slot must be in \[0, 32767\], not 32768"),
        (lambda: Segment(0), "dim must be an integer of at least 1, not 0"),
        (lambda: Segment(1, learning_rate=-1.0), "learning_rate must be finite and not negative"),
        (lambda: Segment(1, delay_compensation=math.inf), "delay_compensation must be finite"),
        (lambda: Segment(1, stochastic_rounding=1), "stochastic_rounding must be True or False, not 1"),
        (lambda: PooledFeature("f", "t", "max"), "feature 'f': combiner must be one of sum, mean, first_n, not 'max'"),
        (lambda: PooledFeature("f", "t", "first_n"), "max_length must be at least 1 for first_n and 0 else, not 0"),
        (lambda: PooledFeature("f", "t", max_length=1), "max_length must be"),
        (lambda: PooledFeature("f", "t", "first_n", -1), "max_length must be"),
    ],
)
def test_a_bad_configuration_is_refused_where_it_is_made(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


def test_what_only_the_library_knows_is_refused_when_a_store_is_opened() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="table 't', segment 1: optimizer batch_softmax"):
        open_store(TableConfig("t", segments=(Segment(2), Segment(2, BatchSoftmax()))))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("=sgd", "=adamw"), "adamw"),
        (("segment.0.dim=1", "segment.0.dim=0"), "dim"),
        ((";expire_days=36500.0", ""), "expire_days"),
        (("serving=0", "serving=0;colour=red"), "colour"),
    ],
)
def test_a_text_that_python_would_not_write_is_refused_by_the_op(change: tuple[str, str], problem: str) -> None:
    text = TableConfig("t", 1, Sgd(), Zeros()).to_text()
    assert change[0] in text
    with pytest.raises(tf.errors.InvalidArgumentError, match=problem):
        library.load().millrace_open_store(tables=[text.replace(*change)], store_name="bad-text")


@pytest.mark.parametrize("table", TABLES)
def test_a_table_comes_back_from_its_text_but_for_learning_rates(table: TableConfig) -> None:
    again = TableConfig.from_text(table.to_text())
    assert again.to_text() == table.to_text()
    assert [s.dim for s in again.segments] == [s.dim for s in table.segments]
    assert dataclasses.replace(again, segments=()) == dataclasses.replace(
        table, segments=(), optimizer=again.optimizer, compressor=again.compressor, initializer=again.initializer
    )


def test_numbers_survive_the_text_exactly() -> None:
    table = TableConfig(
        "t",
        segments=(Segment(1, Sgd(), Constant(1 / 3), Int8(2e-9), delay_compensation=0.1), Segment(2, None)),
        seed=(1 << 64) - 1,
        occurrence=Occurrence(SlidingFilter(capacity=(1 << 32) - 1), 7, {5: 255}),
        expire_days=1 / 7,
        slot_expire_days={32767: 1e-5},
        gradient_limit=1e-30,
    )
    assert TableConfig.from_text(table.to_text()) == table


def test_learning_rates_are_those_of_the_step() -> None:
    table = TableConfig(
        "t",
        segments=(
            Segment(1, Sgd(0.5)),
            Segment(1, Adam(0.5, warmup_steps=10)),
            Segment(1, Sgd(0.5), learning_rate=PolynomialDecay(1.0, 10, 0.0)),
            Segment(1, None),
        ),
    )
    assert table.learning_rates(5) == [0.5, 0.25, 0.5, 0.0]


def test_the_serving_form_keeps_dims_and_compressors_only() -> None:
    table = TableConfig(
        "t",
        segments=(Segment(1, Adam(), RandomUniform(), Fp16()), Segment(2, Sgd(), Zeros(), Int8())),
        occurrence=Occurrence(threshold=3),
        expire_days=7,
    )
    serving = table.for_serving()
    assert (serving.serving, serving.trains, serving.occurrence, serving.expire_days) == (True, False, None, 7)
    assert [(s.dim, s.optimizer, s.compressor) for s in serving.segments] == [(1, None, Fp16()), (2, None, Int8())]
