"""Steps that make sparse features of others: slots, combinations, masks, look-ups, hashes, compressed embeddings."""

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

_FIDS = pa.list_(pa.int64())


class _Input(NamedTuple):
    """A feature that a step reads."""

    field: pa.Field
    column: pa.Array


class FeatureStep(Step):
    """A step that makes features of features. A batch without the feature passes."""

    def feature(self, batch: pa.RecordBatch, name: str) -> _Input | None:
        """The column `name`; None when the batch has none such."""
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
        """The error of a feature of a wrong type."""
        return self.wrong(setting, found.field.name, f"the feature holds {found.field.type}", f"name one of {wanted}")


class SwitchSlot(FeatureStep):
    """Gives the fids of features another slot, in place or in a copy `<name>_<suffix>`.

    Fids v1 stay v1 and keep 54 bits of signature, v2 keep 48. `legacy_mask`: one bit more, so that an odd slot stays in
    the last bit of the new one, as in models trained with Monolith.
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
                raise self.wrong(f"features[{index}].feature_name", feature.feature_name, "is there twice", "drop one")
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
            raise self.wrong(f"{setting}.slot", slot, problem, f"choose 0..{fid.MAX_SLOT_V1}, or convert_fids before")
        return switch_slot(found.column, slot, v1, self.config.legacy_mask)

    def _copy_name(self, name: str) -> str:
        return f"{name}_{self.config.suffix or 'share'}"


class CombineFeatures(FeatureStep):
    """Makes a feature of every pair of fids of two features, the first one outer.

    A fid is `slot` and a hash of the pair; with `legacy_product`, as models trained with Monolith have it, both halves
    of the product, xored (0 absorbs, and small products collide); with `legacy_mask` as well, bit 48 of that stays in
    the slot. A row is null where one of the features is, and where it would have more than 16384 pairs.
    """

    counters = {"rows_too_many": "rows of too many pairs, left without the combination"}
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
            raise self.wrong("legacy_mask", True, "no model has it without legacy_product", "set both or none")

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
    """Looks up the integers of a feature in `mapping`, in place or into `output_name`.

    Those without an entry become `default_value`, -1 unless given.
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
    """Makes fids of the integers of a feature, or of `__UID__` and the like: `slot` and their CityHash64.

    In place, or into `output_name`. `legacy_mask`: the slot's last bit is one of the hash unless the slot is odd, as in
    models trained with Monolith.
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
    """Turns fids v1 into v2: all features that hold them, or those of `feature_names`; fids v2 stay as they are.

    Lossy: 6 of the 54 bits of the signature are dropped, so that two fids may become one.
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
    """Turns compressed embeddings (qtz8mm) of `dim` numbers into lists of floats, in place or into `output_name`.

    A row without bytes is null; so is one whose bytes are wrong, or that has several values.
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
    """The field of what a step makes of `source`; in place it keeps its number."""
    metadata = dict(kind or {})
    if source.name == name and record_batch.ID_KEY in (source.metadata or {}):
        metadata[record_batch.ID_KEY] = source.metadata[record_batch.ID_KEY]
    return pa.field(name, type, metadata=metadata or None)
