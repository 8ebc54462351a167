"""Keys of named data sources: a record's header carries the key instead of the name."""

from millrace.runtime.errors import UserError

DATA_SOURCE_KEY = "__DATA_SOURCE_KEY__"
"""int64 column: the key of the record's data source."""


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


def check_names(names: tuple[str, ...], field: str = "data_sources") -> None:
    """UserError naming `field` when two of the names have the same key: their records could not be told apart."""
    seen: dict[int, str] = {}
    for name in names:
        other = seen.setdefault(data_source_key(name), name)
        if other != name:
            raise UserError(field, name, f"has the same key as {other!r}", "rename one of them")
