"""qtz8mm: embeddings with one byte per number.

The bytes of an embedding are the text `UE_QTZ`, the smallest and the largest number as float16, and one byte q for each
number, which stands for min + q (max - min) / 255. Embeddings of up to 4 numbers, which that would make no shorter, are
`UE_QTZ` and the numbers as float16. All is little-endian.
"""

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.hashes import bytes_of
from millrace.transforms.batch.list_columns import lengths, list_array, splits_of

_TAG = np.frombuffer(b"UE_QTZ", np.uint8)
_STEPS = 255
_PLAIN_DIM = 4
_LARGEST = float(np.finfo(np.float16).max)


def compress_qtz8mm(matrix: np.ndarray) -> pa.BinaryArray:
    """Embeddings, float32 [rows, dim], as binary [rows]. Numbers are clipped to +-65504; ValueError for NaN."""
    if np.isnan(matrix).any():
        raise ValueError("an embedding holds NaN")
    rows, dim = matrix.shape
    numbers = np.clip(matrix.astype(np.float32), -_LARGEST, _LARGEST)
    body = _as_bytes(numbers) if dim <= _PLAIN_DIM else _quantized(numbers)
    data = np.hstack([np.broadcast_to(_TAG, (rows, len(_TAG))), body])
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(data.shape[1])
    return pa.BinaryArray.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(data.tobytes())])


def decompress_qtz8mm(values: pa.Array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings in binary [rows].

    Returns: (float32 [rows, dim], bool [rows]: true where the bytes are an embedding of `dim` numbers). The numbers of
      the other rows are 0.
    """
    offsets, data = bytes_of(values)
    width = len(_TAG) + (2 * dim if dim <= _PLAIN_DIM else 4 + dim)
    rows = np.flatnonzero(np.diff(offsets) == width)
    embeddings, good = np.zeros((len(values), dim), np.float32), np.zeros(len(values), bool)
    if not len(rows):
        return embeddings, good
    blocks = np.lib.stride_tricks.sliding_window_view(data, width)[offsets[rows]]
    blocks, rows = (part[(blocks[:, : len(_TAG)] == _TAG).all(axis=1)] for part in (blocks, rows))
    body = blocks[:, len(_TAG) :]
    # Bytes of unknown origin may be NaN of any kind; such rows are not sound.
    with np.errstate(invalid="ignore"):
        numbers, sound = _plain(body) if dim <= _PLAIN_DIM else _dequantized(body)
    embeddings[rows[sound]], good[rows[sound]] = numbers[sound], True
    return embeddings, good


def decompress_column(column: pa.ListArray, dim: int) -> tuple[pa.ListArray, int]:
    """(list<float> [rows], number of rows with wrong bytes) of list<binary> [rows], one embedding per row."""
    counts = lengths(column)
    single = counts == 1
    values = column.flatten().take(pa.array(splits_of(counts)[:-1][single]))
    embeddings, good = decompress_qtz8mm(values, dim)
    filled = single.copy()
    filled[single] = good
    numbers = embeddings[good].ravel()
    bad = int(np.count_nonzero((counts > 0) & ~filled))
    return list_array(numbers, splits_of(filled * dim), pa.float32(), ~filled), bad


def _quantized(numbers: np.ndarray) -> np.ndarray:
    """uint8 [rows, 4 + dim] of float32 [rows, dim]; the steps are between the ends as float16, which a reader has."""
    ends = _as_bytes(np.stack([numbers.min(axis=1), numbers.max(axis=1)], axis=1))
    low, step = _scale(_halves(ends))
    steps = np.divide(numbers - low, step, out=np.zeros(numbers.shape), where=step > 0)
    return np.hstack([ends, np.clip(np.floor(steps + 0.5), 0, _STEPS).astype(np.uint8)])


def _dequantized(body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [rows, dim], bool [rows]: whether the bytes are sound) of uint8 [rows, 4 + dim]."""
    ends = _halves(body[:, :4])
    low, step = _scale(ends)
    return (low + step * body[:, 4:]).astype(np.float32), ends[:, 0] <= ends[:, 1]


def _plain(body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [rows, dim], bool [rows]: whether the bytes are sound) of uint8 [rows, 2 dim]."""
    numbers = _halves(body)
    return numbers, ~np.isnan(numbers).any(axis=1)


def _scale(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(smallest number, width of a step), float64 [rows, 1] each, of the ends, float32 [rows, 2]."""
    low, high = (ends[:, at : at + 1].astype(np.float64) for at in (0, 1))
    return low, (high - low) / _STEPS


def _as_bytes(numbers: np.ndarray) -> np.ndarray:
    """uint8 [rows, 2 n]: the bytes of float32 [rows, n] as float16."""
    return np.ascontiguousarray(numbers.astype("<f2")).view(np.uint8)


def _halves(data: np.ndarray) -> np.ndarray:
    """float32 [rows, n] of the float16 in uint8 [rows, 2 n]; infinities become +-65504."""
    halves = np.ascontiguousarray(data).view("<f2").astype(np.float32)
    return np.clip(halves, -_LARGEST, _LARGEST)
