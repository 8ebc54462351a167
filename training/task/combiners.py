"""From the embeddings of a row's ids to one tensor per row, in plain TensorFlow.

They are the reference of the pooled lookup's op, and serve graphs that must load without it. Rows are ragged: with
`row_splits` int64 or int32 [rows + 1], row r has the embeddings [row_splits[r], row_splits[r + 1]).
"""

import tensorflow as tf

from millrace.training.task.features import Combiner, FirstN, ReduceMean, ReduceSum


def combine(combiner: Combiner, row_splits: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
    """The embeddings [ids, dim] of each row combined: [rows, dim], or [rows, combiner.n, dim] for FirstN."""
    match combiner:
        case FirstN(n):
            return first_n(row_splits, embeddings, n)
        case ReduceMean():
            return reduce_mean(row_splits, embeddings)
        case ReduceSum():
            return reduce_sum(row_splits, embeddings)


def reduce_sum(row_splits: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
    """Sum of each row's embeddings [ids, dim]: [rows, dim]. A row without ids is zeros."""
    lengths = row_splits[1:] - row_splits[:-1]
    rows = tf.size(lengths)
    return tf.math.unsorted_segment_sum(embeddings, tf.repeat(tf.range(rows), lengths), rows)


def reduce_mean(row_splits: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
    """Mean of each row's embeddings [ids, dim]: [rows, dim]. A row without ids is zeros."""
    lengths = tf.cast(row_splits[1:] - row_splits[:-1], embeddings.dtype)
    return reduce_sum(row_splits, embeddings) / tf.maximum(lengths, 1)[:, tf.newaxis]


def first_n(row_splits: tf.Tensor, embeddings: tf.Tensor, n: int) -> tf.Tensor:
    """The first `n` embeddings [ids, dim] of each row in order, filled up with zeros: [rows, n, dim]."""
    ragged = tf.RaggedTensor.from_row_splits(embeddings, row_splits, validate=False)
    return ragged.to_tensor(shape=[None, n, embeddings.shape[-1]])


def square_norm(row_splits: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
    """y = sqrt(sum of x^2) over each row's embeddings x [ids, dim]: [rows, dim]. Gradient x / y, 0 where y is 0."""
    squares = reduce_sum(row_splits, tf.square(embeddings))
    positive = squares > 0
    # Both branches of tf.where get a gradient, and that of the root of zero is infinite: times zero it gives NaN.
    return tf.where(positive, tf.sqrt(tf.where(positive, squares, 1)), 0)


def sequence_mask(row_splits: tf.Tensor, max_length: int) -> tf.Tensor:
    """1 where a row has an id at that position, else 0: [rows, max_length], of the dtype of `row_splits`."""
    return tf.sequence_mask(row_splits[1:] - row_splits[:-1], max_length, row_splits.dtype)
