"""Parsed batches as tensors, the look-ahead by one, and windows of batches."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from millrace.training.stream.input_helpers import cache_one, merged_window, to_tensors
from tests.conformance.covers import covers


def test_parsed_features_become_ragged_and_dense_tensors() -> None:
    parsed = {
        "fids": (np.array([1, 2, 3]), np.array([0, 2, 2, 3])),
        "age": np.array([[1.0], [2.0], [3.0]], np.float32),
        "name": np.array([[b"a"], [b""], [b"c"]], object),
        "nobody": np.zeros((0, 2), object),
    }
    tensors = to_tensors(parsed)
    assert tensors["fids"].to_list() == [[1, 2], [], [3]]
    assert (tensors["age"].dtype, tensors["name"].dtype, tensors["nobody"].dtype) == (tf.float32, tf.string, tf.string)
    assert tensors["name"].numpy().tolist() == [[b"a"], [b""], [b"c"]]


@covers("data:v36")
@pytest.mark.parametrize(
    ("splits", "rows"), [([0, 0, 1, 3], [1, 2, 2]), ([0, 4, 4, 7, 8, 8], [0, 0, 0, 0, 2, 2, 2, 3])]
)
def test_a_ragged_tensor_knows_the_row_of_each_value(splits: list[int], rows: list[int]) -> None:
    ragged = to_tensors({"fids": (np.arange(splits[-1]), np.array(splits))})["fids"]
    assert ragged.value_rowids().numpy().tolist() == rows


def _looked(dataset: tf.data.Dataset) -> list[tuple[Any, bool]]:
    return [(element, bool(is_last)) for element, is_last in cache_one(dataset)]


@covers("data:v36")
def test_the_last_element_is_known_when_it_comes() -> None:
    dataset = tf.data.Dataset.from_tensor_slices([1, 2])
    assert [(int(element), is_last) for element, is_last in _looked(dataset)] == [(1, False), (2, True)]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_only_the_last_one_of_any_number_is_the_last(count: int) -> None:
    expected = [(i, i == count - 1) for i in range(count)]
    assert [(int(element), is_last) for element, is_last in _looked(tf.data.Dataset.range(count))] == expected


def test_elements_keep_their_structure() -> None:
    ragged = tf.data.Dataset.from_tensor_slices({"fids": tf.ragged.constant([[1], [], [2, 3]]), "x": [1.0, 2.0, 3.0]})
    elements = _looked(ragged.batch(2))
    assert [element["fids"].to_list() for element, _ in elements] == [[[1], []], [[2, 3]]]
    assert [is_last for _, is_last in elements] == [False, True]
    pairs = _looked(tf.data.Dataset.from_tensor_slices(([1, 2], [3, 4])))
    assert [tuple(int(part) for part in element) for element, _ in pairs] == [(1, 3), (2, 4)]


def test_the_source_is_read_once() -> None:
    starts = []

    def numbers() -> Any:
        starts.append(1)
        yield from range(3)

    dataset = tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec([], tf.int64))
    assert len(_looked(dataset)) == 3
    assert len(starts) == 1


def _batches(rows: int, batch_size: int) -> tf.data.Dataset:
    fids = tf.RaggedTensor.from_row_lengths(tf.range(rows * (rows - 1) // 2), tf.range(rows))
    columns = {"fids": fids, "x": tf.reshape(tf.range(2 * rows), [rows, 2])}
    numbered = tf.data.Dataset.from_tensor_slices(columns).batch(batch_size).enumerate()
    return numbered.map(lambda number, batch: batch | {"number": number})


def test_windows_of_batches_have_the_rows_of_all() -> None:
    (window,) = merged_window(_batches(5, 2))
    fids = [list(range(i * (i - 1) // 2, i * (i + 1) // 2)) for i in range(5)]
    assert window["fids"].to_list() == fids[:4]
    assert window["x"].numpy().tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert window["number"].numpy().tolist() == [0, 1]


def test_batches_of_different_sizes_merge_and_the_rest_is_kept_when_asked_for() -> None:
    windows = list(merged_window(_batches(5, 2), 3))
    assert [window["x"].shape for window in windows] == [(5, 2)]
    windows = list(merged_window(_batches(5, 2), 2, drop_remainder=False))
    assert [window["fids"].nrows().numpy() for window in windows] == [4, 1]
    assert [window["number"].numpy().tolist() for window in windows] == [[0, 1], [2]]


def test_a_window_of_plain_batches_is_a_plain_batch() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(tf.reshape(tf.range(8), [4, 2])).batch(2, drop_remainder=True)
    (window,) = merged_window(dataset)
    assert window.numpy().tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    pairs = merged_window(tf.data.Dataset.zip((dataset, dataset)))
    assert [part.shape for part in next(iter(pairs))] == [(4, 2), (4, 2)]


def test_rows_of_different_widths_are_filled_up_in_a_window() -> None:
    batches = [[[1, 2]], [[3, 4, 5], [6, 7, 8]]]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=tf.TensorSpec([None, None], tf.int64)
    )
    (window,) = merged_window(dataset)
    assert window.numpy().tolist() == [[1, 2, 0], [3, 4, 5], [6, 7, 8]]
