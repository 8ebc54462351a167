"""Random records for the tests of the codecs, and random damage to their bytes."""

from typing import Any

from hypothesis import strategies as st

from millrace.protos.instance_pb2 import Instance
from millrace.protos.line_id_pb2 import LineId
from millrace.protos.record_pb2 import INDIVIDUAL, SHARED, Example, ExampleBatch, Feature

_U64 = st.integers(0, (1 << 64) - 1)
_FID_V2 = st.integers(0, (1 << 63) - 1)
_I64 = st.integers(-(1 << 63), (1 << 63) - 1)
_I32 = st.integers(-(1 << 31), (1 << 31) - 1)
_FLOAT = st.floats(width=32, allow_nan=False)
_DOUBLE = st.floats(allow_nan=False)
_BYTES = st.binary(max_size=9)
_NAMES = st.sampled_from(["a", "b", "c", "ä", "fc_slot_1", "value", "x" * 100])
_KINDS: dict[str, Any] = {
    "fid_v1": _U64,
    "fid_v2": _FID_V2,
    "float": _FLOAT,
    "double": _DOUBLE,
    "int64": _I64,
    "bytes": _BYTES,
}


@st.composite
def features(draw: Any, kind: str | None = None) -> Feature:
    """A feature with any member set, or none; with `kind`, a list of these values or one of lists of them."""
    feature = Feature()
    kind = kind or draw(st.sampled_from([*_KINDS, "none"]))
    if kind == "none":
        return feature
    shape = draw(st.sampled_from(["list", "list", "lists", "value"]))
    if shape == "list":
        getattr(feature, f"{kind}_list").value.extend(draw(st.lists(_KINDS[kind], max_size=4)))
        getattr(feature, f"{kind}_list").SetInParent()
    elif shape == "lists":
        lists = getattr(feature, f"{kind}_lists")
        lists.SetInParent()
        for values in draw(st.lists(st.lists(_KINDS[kind], max_size=3), max_size=3)):
            lists.list.add().value.extend(values)
    elif not kind.startswith("fid"):
        setattr(feature, f"{kind}_value", draw(_KINDS[kind]))
    return feature


@st.composite
def line_ids(draw: Any) -> LineId:
    """A LineId with some fields set."""
    message = LineId()
    values = {
        "uid": _U64,
        "req_time": _I64,
        "chnid": _I64,
        "sample_rate": _FLOAT,
        "did": st.text(max_size=4),
        "is_draw": st.booleans(),
        "rank": _I32,
    }
    for name in draw(st.sets(st.sampled_from(list(values)), max_size=4)):
        setattr(message, name, draw(values[name]))
    message.actions.extend(draw(st.lists(_I32, max_size=3)))
    message.special_strategies.extend(draw(st.lists(_I32, max_size=2)))
    message.chnids.extend(draw(st.lists(_I64, max_size=2)))
    return message


@st.composite
def examples(draw: Any) -> Example:
    """An Example: mostly one without two features of a name."""
    example = Example(
        label=draw(st.lists(_FLOAT, max_size=3)),
        instance_weight=draw(st.sampled_from([0.0, 1.5])),
        data_source_key=draw(st.sampled_from([0, 7])),
    )
    for name in draw(st.lists(_NAMES, max_size=4, unique=draw(st.integers(0, 9)) > 0)):
        named = example.named_feature.add(name=name, id=draw(st.sampled_from([0, 3, -1])))
        named.feature.CopyFrom(draw(features(_kind_of(name, draw))))
    _add_reserved(draw, lambda name: example.named_feature.add(name=name).feature)
    if draw(st.booleans()):
        example.line_id.CopyFrom(draw(line_ids()))
    for name in draw(st.sets(st.sampled_from(["raw", "raw2"]))):
        example.named_raw_feature.add(name=name).raw_feature.feature.extend(draw(st.lists(_BYTES, max_size=3)))
    return example


@st.composite
def example_batches(draw: Any) -> ExampleBatch:
    """An ExampleBatch of up to 4 rows: mostly one whose lists have as many features."""
    size = draw(st.integers(1, 4))
    batch = ExampleBatch(batch_size=size, data_source_key=draw(st.sampled_from([0, 7])))
    reserved = draw(st.sets(st.sampled_from(["__LINE_ID__", "__LABEL__", "instance_weight"])))
    for name in [*draw(st.lists(_NAMES, max_size=3, unique=True)), *sorted(reserved)]:
        shared = draw(st.booleans())
        named = batch.named_feature_list.add(name=name, type=SHARED if shared else INDIVIDUAL, id=draw(_I32))
        for _ in range(1 if shared else size + (draw(st.integers(0, 20)) == 0)):
            if name in reserved:
                _set_reserved(draw, name, named.feature.add())
            else:
                named.feature.add().CopyFrom(draw(features(_kind_of(name, draw))))
    for name in draw(st.sets(st.sampled_from(["raw"]))):
        raw = batch.named_raw_feature_list.add(name=name)
        for _ in range(size):
            raw.raw_feature.add().feature.extend(draw(st.lists(_BYTES, max_size=2)))
    return batch


@st.composite
def instances(draw: Any) -> Instance:
    """An Instance."""
    instance = Instance(
        fid=draw(st.lists(st.integers(0, 3).map(lambda slot: slot << 54 | 5) | _U64, max_size=6)),
        value=draw(st.lists(_FLOAT, max_size=2)),
        label=draw(st.lists(_FLOAT, max_size=2)),
        next_fid=draw(st.lists(_U64, max_size=2)),
    )
    if draw(st.booleans()):
        instance.instance_weight = draw(_FLOAT)
        instance.data_source_key = draw(st.integers(0, (1 << 32) - 1))
        instance.line_id.CopyFrom(draw(line_ids()))
        instance.label_tag.add(key=1, val=2)
    for name in draw(st.lists(_NAMES, max_size=3, unique=draw(st.integers(0, 9)) > 0)):
        feature = instance.feature.add(name=name)
        kind = draw(st.sampled_from(["fid", "float", "int64", "bytes"]))
        values = _FID_V2 if kind == "fid" else _KINDS[kind]
        if draw(st.booleans()):
            getattr(feature, "fid" if kind == "fid" else f"{kind}_value").extend(draw(st.lists(values, max_size=3)))
        if draw(st.booleans()):
            for each in draw(st.lists(st.lists(values, max_size=2), max_size=3)):
                getattr(feature, f"{kind}_list").add().value.extend(each)
    return instance


MESSAGES = {"example": examples(), "example_batch": example_batches(), "instance": instances()}


@st.composite
def damaged(draw: Any, format: str) -> bytes:
    """The bytes of a record with one change."""
    value = draw(MESSAGES[format]).SerializeToString()
    at = draw(st.integers(0, max(0, len(value) - 1)))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return value[:at]
    if kind == 1:
        return value[:at] + draw(st.binary(min_size=1, max_size=4)) + value[at:]
    if kind == 2:
        return value[:at] + value[at + draw(st.integers(1, 4)) :]
    if kind == 3:
        other = draw(MESSAGES[format]).SerializeToString()
        return value[:at] + other[draw(st.integers(0, len(other))) :]
    if kind == 4:
        return value + draw(MESSAGES[format]).SerializeToString()
    changed = bytearray(value)
    if changed:
        changed[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def _kind_of(name: str, draw: Any) -> str:
    """Mostly one kind a name."""
    kinds = list(_KINDS)
    usual = {"a": "fid_v2", "b": "float", "c": "int64", "ä": "bytes", "fc_slot_1": "fid_v1", "value": "float"}
    return usual.get(name, "double") if draw(st.integers(0, 7)) else draw(st.sampled_from([*kinds, "none"]))


def _add_reserved(draw: Any, add: Any) -> None:
    for name in sorted(draw(st.sets(st.sampled_from(["__LINE_ID__", "__LABEL__", "instance_weight"]), max_size=2))):
        _set_reserved(draw, name, add(name))
    if draw(st.integers(0, 15)) == 0:
        add("__UID__").int64_value = 3


def _set_reserved(draw: Any, name: str, feature: Feature) -> None:
    if draw(st.integers(0, 7)) == 0:
        feature.CopyFrom(draw(features()))
    elif name == "__LINE_ID__":
        feature.bytes_list.value.append(draw(line_ids()).SerializeToString())
    else:
        feature.float_list.value.extend(draw(st.lists(_FLOAT, max_size=2)))
