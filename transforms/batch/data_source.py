"""Keys of named data sources: a record's header carries the key instead of the name."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.runtime.errors import UserError


def java_hash(text: str) -> int:
    """Java's `String.hashCode` over the bytes of the UTF-8 text: h = 31 h + byte, wrapped to int32."""
    value = 0
    for byte in text.encode("utf-8"):
        value = (31 * value + byte) & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def data_source_key(name: str) -> int:
    """uint32: the hash of the name shifted left by 8 bits, which drops its upper byte; 0 for an empty name."""
    return (java_hash(name) << 8) & 0xFFFFFFFF


def header_bytes(name: str) -> bytes:
    """The 8 bytes of the LagrangeX header (a uint64 with the key) that stand before a record of the source `name`."""
    return data_source_key(name).to_bytes(8, "little")


def keys_of_names(names: pa.Array) -> np.ndarray:
    """uint32 [n]: the key of each name, 0 for a null. Each distinct name is hashed once."""
    encoded = names if pa.types.is_dictionary(names.type) else pc.dictionary_encode(pc.fill_null(names, ""))
    keys = np.array([data_source_key(name or "") for name in encoded.dictionary.to_pylist()], np.uint32)
    codes = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    if not len(keys):
        return np.zeros(len(names), np.uint32)
    return np.where(encoded.indices.is_valid().to_numpy(zero_copy_only=False), keys[codes], 0).astype(np.uint32)


def names_of_keys(keys: pa.Array, names: tuple[str, ...]) -> pa.Array:
    """string [n]: the one of `names` that has the key; null where none has it. UserError as of `check_names`."""
    check_names(names)
    known = pa.array([data_source_key(name) for name in names], pa.uint32())
    return pa.array(names, pa.string()).take(pc.index_in(keys.cast(pa.uint32()), value_set=known))


def keys_of_channels(channels: np.ndarray, sources: Mapping[int, str], default: str = "") -> np.ndarray:
    """uint32 [n]: the key of the source of each channel, int64 [n]; of `default` where `sources` has none.

    For records without a header.
    """
    known = np.array(sorted(sources), np.int64)
    keys = np.array([data_source_key(sources[channel]) for channel in known.tolist()] or [0], np.uint32)
    found = np.searchsorted(known, channels)
    at = np.minimum(found, max(len(known) - 1, 0))
    hit = (found < len(known)) & (known[at] == channels) if len(known) else np.zeros(len(channels), bool)
    return np.where(hit, keys[at], np.uint32(data_source_key(default))).astype(np.uint32)


def check_names(names: tuple[str, ...], field: str = "data_sources") -> None:
    """UserError naming `field` when two of the names have the same key: their records could not be told apart."""
    seen: dict[int, str] = {}
    for name in names:
        other = seen.setdefault(data_source_key(name), name)
        if other != name:
            raise UserError(field, name, f"has the same key as {other!r}", "rename one of them")
