"""Steps that make features from others: slots, combinations, masks, look-ups, hashes, compressed embeddings."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import fid, record_batch
from millrace.transforms.batch.list_columns import one_each
from millrace.transforms.steps.features.embedding_compression import decompress_column
from millrace.transforms.steps.features.fid_operations import (
    combine_features,
    convert_fids,
    extract_fids,
    fid_mask,
    map_ids,
    switch_slot,
)
from millrace.transforms.steps.step import Counts, Step, StepContext

MAX_EMBEDDING_DIM = 1 << 16
"""Most numbers of an embedding; a larger `dim` is taken for a mistake."""

_FIDS = pa.list_(pa.int64())


class _Input(NamedTuple):
    """A feature that a step reads: the field and the column of the batch."""

    field: pa.Field
    column: pa.Array


class FeatureStep(Step):
    """A step that makes features from features. A batch that lacks the input passes through."""

    def feature(self, batch: pa.RecordBatch, name: str) -> _Input | None:
        """The column `name`; None when the batch has no such column."""
        index = batch.schema.get_field_index(name)
        return _Input(batch.schema.field(index), batch.column(index)) if index >= 0 else None

    def check_name(self, setting: str, name: str) -> None:
        """UserError unless `name` may be the name of a feature."""
        if not name:
            raise self.wrong(setting, name, "empty", "name a feature")
        if record_batch.is_metadata_name(name):
            raise self.wrong(setting, name, "columns of this name hold row metadata", "name a feature")

    def check_slot(self, setting: str, slot: int) -> None:
        """UserError unless a feature may have the slot."""
        if not 0 <= slot < fid.AUDIT_SLOT:
            raise self.wrong(setting, slot, "out of range", f"choose 0..{fid.AUDIT_SLOT - 1}")

    def unfit(self, setting: str, found: _Input, wanted: str) -> Exception:
        """The error that tells of a feature of a wrong type."""
        return self.wrong(setting, found.field.name, f"the feature holds {found.field.type}", f"name one of {wanted}")


class SwitchSlot(FeatureStep):
    """Replaces the slot of the fids of features, either in the feature itself or in a copy `<name>_<suffix>`.

    Fids v1 stay v1 and keep the 54 bits of their signature; fids v2 keep 48 bits. With `legacy_mask` one bit more is
    kept, so that the last bit of the old slot gets into the new one, as in models trained with Monolith.
    """

    example = "switch_slot: {features: [{feature_name: item, slot: 301}], suffix: share}"

    def __init__(self, config: pb.SwitchSlotConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        if not config.features:
            raise self.wrong("features", "", "no features", "give one or more")
        seen: set[str] = set()
        for index, feature in enumerate(config.features):
            self.check_name(f"features[{index}].feature_name", feature.feature_name)
            self.check_slot(f"features[{index}].slot", feature.slot)
            if feature.feature_name in seen:
                raise self.wrong(
                    f"features[{index}].feature_name", feature.feature_name, "is there twice", "remove one of the two"
                )
            seen.add(feature.feature_name)

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        switched = batch
        for index, feature in enumerate(self.config.features):
            found = self.feature(batch, feature.feature_name)
            if found is not None:
                name = feature.feature_name if feature.inplace else self._copy_name(feature.feature_name)
                column = self._switched(f"features[{index}]", found, feature.slot)
                field = found.field.with_name(name).with_type(column.type)
                switched = record_batch.with_column(switched, field, column)
        return switched

    def _switched(self, setting: str, found: _Input, slot: int) -> pa.ListArray:
        v1 = record_batch.is_fid_v1_field(found.field)
        if not v1 and not record_batch.is_fid_field(found.field):
            raise self.unfit(f"{setting}.feature_name", found, "fids")
        if v1 and slot > fid.MAX_SLOT_V1:
            problem = f"{found.field.name} holds fids v1"
            raise self.wrong(
                f"{setting}.slot", slot, problem, f"choose 0..{fid.MAX_SLOT_V1}, or run convert_fids before"
            )
        return switch_slot(found.column, slot, v1, self.config.legacy_mask)

    def _copy_name(self, name: str) -> str:
        return f"{name}_{self.config.suffix or 'share'}"


class CombineFeatures(FeatureStep):
    """Makes a feature with one fid for every pair of a fid of one feature and a fid of another.

    The pairs of a row are in the order of the first feature, then of the second. A fid consists of `slot` and a hash of
    the pair. Models trained with Monolith need `legacy_product`: the two halves of the product of the fids, xored, in
    place of the hash; every product with 0 is then the same, and small products collide. With `legacy_mask` as well,
    bit 48 of that stays in the slot. A row is null where one of the two features is null, and where there are more than
    16,384 pairs.
    """

    counters = {"rows_too_many": "rows with more than 16,384 pairs, which are null"}
    example = "combine_features: {feature_names: [user, item], slot: 505, output_name: user_item}"

    def __init__(self, config: pb.CombineFeaturesConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        if len(config.feature_names) != 2:
            raise self.wrong("feature_names", ", ".join(config.feature_names), "not two names", "give two")
        for index, name in enumerate(config.feature_names):
            self.check_name(f"feature_names[{index}]", name)
        self.check_slot("slot", config.slot)
        self.check_name("output_name", config.output_name)
        if config.legacy_mask and not config.legacy_product:
            raise self.wrong("legacy_mask", True, "needs legacy_product, as in Monolith", "set both or none")

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        first, second = (self._fids(batch, index) for index in (0, 1))
        config = self.config
        fids, too_many = combine_features(first, second, config.slot, config.legacy_product, config.legacy_mask)
        counts["rows_too_many"] += int(np.count_nonzero(too_many))
        return record_batch.with_column(batch, record_batch.fid_field(config.output_name), fids)

    def _fids(self, batch: pa.RecordBatch, index: int) -> pa.ListArray:
        found = self.feature(batch, self.config.feature_names[index])
        if found is None:
            return pa.nulls(batch.num_rows, _FIDS)
        if found.field.type != _FIDS:
            raise self.unfit(f"feature_names[{index}]", found, "list<int64>")
        return found.column


class MaskFid(FeatureStep):
    """Makes a feature that is 1 where the row has the fid in another feature, else 0."""

    example = "mask_fid: {feature_name: item, fid: 290956192322012601, output_name: is_special}"

    def __init__(self, config: pb.MaskFidConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self.check_name("feature_name", config.feature_name)
        self.check_name("output_name", config.output_name)

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        found = self.feature(batch, self.config.feature_name)
        if found is not None and found.field.type != _FIDS:
            raise self.unfit("feature_name", found, "list<int64>")
        column = pa.nulls(batch.num_rows, _FIDS) if found is None else found.column
        mask = one_each(fid_mask(column, self.config.fid))
        return record_batch.with_column(batch, pa.field(self.config.output_name, mask.type), mask)


class MapIds(FeatureStep):
    """Replaces the integers of a feature by those that `mapping` has for them, or writes these to `output_name`.

    An integer without an entry becomes `default_value`.
    """

    example = "map_ids: {feature_name: city, mapping: {123: 0, 456: 1}, output_name: city_index}"

    def __init__(self, config: pb.MapIdsConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self.check_name("output_name" if config.output_name else "feature_name", _output_name(config))
        if not config.mapping:
            raise self.wrong("mapping", "", "empty", "give one entry or more")
        self._mapping = dict(config.mapping)
        self._default = config.default_value if config.HasField("default_value") else -1

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        found = self.feature(batch, self.config.feature_name)
        if found is None:
            return batch
        if not pa.types.is_integer(_innermost(found.field.type)):
            raise self.unfit("feature_name", found, "integers")
        column = map_ids(found.column, self._mapping, self._default)
        return record_batch.with_column(batch, _made_of(found.field, _output_name(self.config), column.type), column)


class ExtractFids(FeatureStep):
    """Makes fids from the integers of a feature, or of a column of row metadata such as `__UID__`.

    A fid consists of `slot` and the CityHash64 of the integer. The fids replace the integers, or are written to
    `output_name`. With `legacy_mask` one bit more of the hash is kept, which gets into the slot if the slot is even, as
    in models trained with Monolith.
    """

    example = "extract_fids: {feature_name: __UID__, slot: 4, output_name: user}"

    def __init__(self, config: pb.ExtractFidsConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self.check_name("output_name" if config.output_name else "feature_name", _output_name(config))
        self.check_slot("slot", config.slot)

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        found = self.feature(batch, self.config.feature_name)
        if found is None:
            return batch
        if _innermost(found.field.type) != pa.int64():
            raise self.unfit("feature_name", found, "int64 or lists of it")
        fids = extract_fids(found.column, self.config.slot, self.config.legacy_mask)
        field = _made_of(found.field, _output_name(self.config), fids.type, record_batch.FID_METADATA)
        return record_batch.with_column(batch, field, fids)


class ConvertFids(FeatureStep):
    """Turns fids v1 into fids v2, in all features that hold fids v1 or in those of `feature_names`.

    Lossy: 6 of the 54 bits of the signature are dropped, so that two fids may become the same. Fids v2 stay as they
    are.
    """

    example = "convert_fids: {feature_names: [fc_slot_1, fc_slot_2]}"

    def __init__(self, config: pb.ConvertFidsConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        for index, name in enumerate(config.feature_names):
            self.check_name(f"feature_names[{index}]", name)

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        converted = batch
        for field in batch.schema:
            if record_batch.is_fid_v1_field(field) and self._is_wanted(field.name):
                column = convert_fids(batch.column(field.name))
                kind = _made_of(field, field.name, column.type, record_batch.FID_METADATA)
                converted = record_batch.with_column(converted, kind, column)
        return converted

    def _is_wanted(self, name: str) -> bool:
        return not self.config.feature_names or name in self.config.feature_names


class DecompressEmbedding(FeatureStep):
    """Turns embeddings of `dim` numbers that are compressed as qtz8mm into lists of floats.

    The lists replace the compressed embeddings, or are written to `output_name`. A row is null if it has no value or
    several values, or if its bytes are no embedding of `dim` numbers.
    """

    counters = {"rows_undecodable": "rows whose bytes are not one compressed embedding of `dim` numbers"}
    example = "decompress_embedding: {feature_name: user_embedding, dim: 32}"

    def __init__(self, config: pb.DecompressEmbeddingConfig, context: StepContext = StepContext()) -> None:
        super().__init__(config, context)
        self.check_name("output_name" if config.output_name else "feature_name", _output_name(config))
        if not 1 <= config.dim <= MAX_EMBEDDING_DIM:
            raise self.wrong("dim", config.dim, "out of range", f"choose 1..{MAX_EMBEDDING_DIM}")

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        found = self.feature(batch, self.config.feature_name)
        if found is None:
            return batch
        if found.field.type != pa.list_(pa.binary()):
            raise self.unfit("feature_name", found, "list<binary>")
        column, bad = decompress_column(found.column, self.config.dim)
        counts["rows_undecodable"] += bad
        return record_batch.with_column(batch, _made_of(found.field, _output_name(self.config), column.type), column)


def _output_name(config: pb.MapIdsConfig | pb.ExtractFidsConfig | pb.DecompressEmbeddingConfig) -> str:
    return config.output_name or config.feature_name


def _innermost(type: pa.DataType) -> pa.DataType:
    return _innermost(type.value_type) if pa.types.is_list(type) else type


def _made_of(source: pa.Field, name: str, type: pa.DataType, kind: Mapping[bytes, bytes] | None = None) -> pa.Field:
    """The field of a feature that a step makes from `source`; a feature that is replaced keeps its number."""
    metadata = dict(kind or {})
    if source.name == name and record_batch.ID_KEY in (source.metadata or {}):
        metadata[record_batch.ID_KEY] = source.metadata[record_batch.ID_KEY]
    return pa.field(name, type, metadata=metadata or None)
