"""Steps that make sparse features of others."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import fid, record_batch
from millrace.transforms.steps.features.embedding_compression import compress_qtz8mm
from millrace.transforms.steps.features.sparse_features import (
    CombineFeatures,
    ConvertFids,
    DecompressEmbedding,
    ExtractFids,
    MapIds,
    MaskFid,
    SwitchSlot,
)
from millrace.transforms.steps.step import Step
from tests.conformance.covers import covers

_FIDS = pa.list_(pa.int64())
_V1 = {"millrace.kind": "fid_v1", "millrace.id": "7"}
_V2 = {"millrace.kind": "fid", "millrace.id": "8"}


def _batch() -> pa.RecordBatch:
    v1 = [fid.fid_v1(3, np.array([1, 2])).tolist(), None, []]
    v2 = [fid.fid_v2(5, np.array([9])).tolist(), [], None]
    schema = pa.schema(
        [
            pa.field("old", _FIDS, metadata=_V1),
            pa.field("new", _FIDS, metadata=_V2),
            pa.field("city", _FIDS),
            pa.field("price", pa.list_(pa.float32())),
            pa.field("__UID__", pa.int64()),
        ]
    )
    columns = [v1, v2, [[123, 912], [456], None], [[1.0], [], None], [185, 0, None]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _processed(step: Step, batch: pa.RecordBatch | None = None) -> pa.RecordBatch:
    batch = _batch() if batch is None else batch
    before = batch.to_pylist()
    made = step.process(batch, Counter())
    assert batch.to_pylist() == before
    return made


@covers("data:v36")
def test_slots_are_switched_in_place_and_in_copies() -> None:
    features = [{"feature_name": "old", "slot": 10, "inplace": True}, {"feature_name": "new", "slot": 10}]
    made = _processed(SwitchSlot(pb.SwitchSlotConfig(features=features)))
    assert made["old"].to_pylist() == [fid.fid_v1(10, np.array([1, 2])).tolist(), None, []]
    assert made["new"].equals(_batch()["new"])
    assert made["new_share"].to_pylist() == [fid.fid_v2(10, np.array([9])).tolist(), [], None]
    assert made.schema.field("new_share").metadata == made.schema.field("new").metadata
    assert made.schema.names == [*_batch().schema.names, "new_share"]


def test_copies_have_the_suffix_that_is_asked_for_and_absent_features_pass() -> None:
    features = [{"feature_name": "new", "slot": 10}, {"feature_name": "absent", "slot": 10}]
    made = _processed(SwitchSlot(pb.SwitchSlotConfig(features=features, suffix="b")))
    assert made.schema.names == [*_batch().schema.names, "new_b"]


def test_a_slot_of_v2_does_not_fit_fids_v1() -> None:
    step = SwitchSlot(pb.SwitchSlotConfig(features=[{"feature_name": "old", "slot": 1024}]))
    with pytest.raises(UserError, match=r"features\[0\].slot=1024: old holds fids v1; choose 0..1023"):
        step.process(_batch(), Counter())


def test_features_are_combined_into_one_of_fids() -> None:
    config = pb.CombineFeaturesConfig(feature_names=["old", "new"], slot=6, output_name="both")
    made = _processed(CombineFeatures(config))
    assert record_batch.is_fid_field(made.schema.field("both"))
    assert [row and len(row) for row in made["both"].to_pylist()] == [2, None, None]
    assert set(fid.slot_v2(made["both"].flatten().to_numpy()).tolist()) == {6}
    config.feature_names[1] = "absent"
    assert _processed(CombineFeatures(config))["both"].to_pylist() == [None] * 3


def test_combinations_that_are_too_many_are_counted() -> None:
    wide = pa.RecordBatch.from_arrays([pa.array([list(range(200)), [1]], _FIDS)], names=["a"])
    step = CombineFeatures(pb.CombineFeaturesConfig(feature_names=["a", "a"], slot=6, output_name="aa"))
    counts: Counter[str] = Counter()
    assert step.process(wide, counts)["aa"].is_null().to_pylist() == [True, False]
    assert counts["rows_too_many"] == 1


def test_a_fid_becomes_a_mask() -> None:
    wanted = int(fid.fid_v2(5, 9))
    made = _processed(MaskFid(pb.MaskFidConfig(feature_name="new", fid=wanted, output_name="has")))
    assert made["has"].to_pylist() == [[1.0], [0.0], [0.0]]
    absent = _processed(MaskFid(pb.MaskFidConfig(feature_name="absent", fid=(1 << 64) - 1, output_name="has")))
    assert absent["has"].to_pylist() == [[0.0]] * 3
    assert absent.schema.field("has").type == pa.list_(pa.float32())


def test_ids_are_mapped_in_place_or_beside() -> None:
    made = _processed(MapIds(pb.MapIdsConfig(feature_name="city", mapping={123: 0, 456: 1}, output_name="index")))
    assert made["index"].to_pylist() == [[0, -1], [1], None]
    made = _processed(MapIds(pb.MapIdsConfig(feature_name="city", mapping={123: 0}, default_value=9)))
    assert made["city"].to_pylist() == [[0, 9], [9], None]
    plain = _processed(MapIds(pb.MapIdsConfig(feature_name="new", mapping={0: 1})))
    assert plain.schema.field("new").metadata == {b"millrace.id": b"8"}


def test_fids_are_extracted_of_features_and_of_metadata() -> None:
    made = _processed(ExtractFids(pb.ExtractFidsConfig(feature_name="__UID__", slot=4, output_name="user")))
    assert made["user"].to_pylist() == [[1153447759131936], [1260191747863172], None]
    assert record_batch.is_fid_field(made.schema.field("user"))
    assert _processed(ExtractFids(pb.ExtractFidsConfig(feature_name="city", slot=4)))["city"].null_count == 1


@pytest.mark.parametrize("names", [[], ["old"], ["old", "new", "absent"]])
def test_fids_v1_become_v2(names: list[str]) -> None:
    made = _processed(ConvertFids(pb.ConvertFidsConfig(feature_names=names)))
    assert made["old"].to_pylist() == [fid.fid_v2(3, np.array([1, 2])).tolist(), None, []]
    assert made.schema.field("old").metadata == {b"millrace.kind": b"fid", b"millrace.id": b"7"}
    assert made["new"].equals(_batch()["new"])


def test_fids_v1_that_are_not_named_stay() -> None:
    assert _processed(ConvertFids(pb.ConvertFidsConfig(feature_names=["new"]))).equals(_batch())


def test_embeddings_are_decompressed_and_wrong_bytes_counted() -> None:
    good = compress_qtz8mm(np.arange(8, dtype=np.float32)[None]).to_pylist()[0]
    rows = [[good], None, [], [good, good], [b"bad"], [None], [good]]
    batch = pa.RecordBatch.from_arrays([pa.array(rows, pa.list_(pa.binary()))], names=["ue"])
    step, counts = DecompressEmbedding(pb.DecompressEmbeddingConfig(feature_name="ue", dim=8)), Counter[str]()
    made = step.process(batch, counts)["ue"]
    assert made.type == pa.list_(pa.float32())
    assert [row and pytest.approx(row, abs=0.02) for row in made.to_pylist()] == [
        list(range(8)), None, None, None, None, None, list(range(8)),
    ]  # fmt: skip
    assert counts["rows_undecodable"] == 3
    assert step.process(batch.slice(3), Counter())["ue"].is_null().to_pylist() == [True, True, True, False]


_STEPS: list[Step] = [
    SwitchSlot(pb.SwitchSlotConfig(features=[{"feature_name": "new", "slot": 10}])),
    CombineFeatures(pb.CombineFeaturesConfig(feature_names=["old", "new"], slot=6, output_name="both")),
    MaskFid(pb.MaskFidConfig(feature_name="new", fid=1, output_name="has")),
    MapIds(pb.MapIdsConfig(feature_name="city", mapping={123: 0})),
    ExtractFids(pb.ExtractFidsConfig(feature_name="city", slot=4)),
    ConvertFids(pb.ConvertFidsConfig()),
]


@pytest.mark.parametrize("step", _STEPS, ids=lambda step: type(step).__name__)
def test_slices_and_empty_batches_are_treated_as_their_rows(step: Step) -> None:
    whole = _processed(step)
    for start, length in ((0, 0), (0, 1), (1, 2), (2, 1), (3, 0)):
        part = _processed(step, _batch().slice(start, length))
        assert part.schema.equals(whole.schema, check_metadata=True)
        assert part.to_pylist() == whole.slice(start, length).to_pylist()


@pytest.mark.parametrize("step", _STEPS, ids=lambda step: type(step).__name__)
def test_batches_without_the_features_pass(step: Step) -> None:
    bare = _batch().select(["price"])
    assert _processed(step, bare)["price"].equals(bare["price"])


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (SwitchSlot(pb.SwitchSlotConfig(features=[{"feature_name": "city", "slot": 1}])), "city: the feature holds"),
        (
            CombineFeatures(pb.CombineFeaturesConfig(feature_names=["new", "price"], output_name="x")),
            r"names\[1\]=price",
        ),
        (MaskFid(pb.MaskFidConfig(feature_name="price", output_name="x")), "feature_name=price"),
        (MapIds(pb.MapIdsConfig(feature_name="price", mapping={1: 2})), "feature_name=price"),
        (ExtractFids(pb.ExtractFidsConfig(feature_name="price")), "feature_name=price"),
        (DecompressEmbedding(pb.DecompressEmbeddingConfig(feature_name="price", dim=4)), "feature_name=price"),
    ],
)
def test_features_of_another_type_are_refused_by_name(step: Step, words: str) -> None:
    with pytest.raises(UserError, match=words):
        step.process(_batch(), Counter())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SwitchSlot(pb.SwitchSlotConfig()), "features=: no features"),
        (lambda: _switch({"slot": 1}), r"features\[0\].feature_name=: empty"),
        (
            lambda: _switch({"feature_name": "a", "slot": 32767}),
            r"features\[0\].slot=32767: out of range; choose 0..32766",
        ),
        (
            lambda: _switch({"feature_name": "a"}, {"feature_name": "a"}),
            r"features\[1\].feature_name=a: is there twice",
        ),
        (lambda: _combine(feature_names=["a"]), "feature_names=a: not two names"),
        (lambda: _combine(feature_names=["a", ""]), r"feature_names\[1\]=: empty"),
        (lambda: _combine(output_name=""), "output_name=: empty"),
        (lambda: _combine(slot=40000), "slot=40000"),
        (lambda: _combine(legacy_mask=True), "legacy_mask=True"),
        (lambda: MaskFid(pb.MaskFidConfig(feature_name="a")), "output_name=: empty"),
        (lambda: MapIds(pb.MapIdsConfig(feature_name="a")), "mapping=: empty"),
        (lambda: MapIds(pb.MapIdsConfig(feature_name="__UID__", mapping={1: 2})), "feature_name=__UID__"),
        (lambda: ExtractFids(pb.ExtractFidsConfig(feature_name="a", slot=40000)), "slot=40000"),
        (lambda: ConvertFids(pb.ConvertFidsConfig(feature_names=["__UID__"])), r"feature_names\[0\]=__UID__"),
        (lambda: DecompressEmbedding(pb.DecompressEmbeddingConfig(feature_name="a")), "dim=0: out of range"),
    ],
)
def test_wrong_settings_are_refused_by_name(make: Callable[[], Step], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def _switch(*features: dict[str, Any]) -> SwitchSlot:
    return SwitchSlot(pb.SwitchSlotConfig(features=features))


def _combine(**changes: Any) -> CombineFeatures:
    settings = {"feature_names": ["a", "b"], "slot": 3, "output_name": "c"} | changes
    return CombineFeatures(pb.CombineFeaturesConfig(**settings))
