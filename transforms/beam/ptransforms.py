"""Every step of a recipe as a PTransform of its own, for pipelines in Python and in Beam YAML.

    rows | FilterByValue(field_name="uid", op="gt", int_operand=[0]) | LabelUpperBound(bounds=[1])

What each does, and its settings: `docs/transforms.md`.
"""

from millrace.transforms.beam.steps import ApplyRecipe, StepTransform

__all__ = [
    "ApplyRecipe",
    "AddAction",
    "AddLabel",
    "AllOf",
    "AnyOf",
    "CombineFeatures",
    "ConvertFids",
    "DecompressEmbedding",
    "ExtractFids",
    "FillMultiRankOutput",
    "FilterByAction",
    "FilterByFeatureValue",
    "FilterByFid",
    "FilterByLabel",
    "FilterByValue",
    "GenerateNegatives",
    "LabelNormalization",
    "LabelUpperBound",
    "LogicalOr",
    "MapIds",
    "MaskFid",
    "MultiLabelGen",
    "NegativeSample",
    "NoneOf",
    "Project",
    "Reweight",
    "RunFlows",
    "ScatterLabel",
    "SelectFlows",
    "ShardFids",
    "SpecialStrategy",
    "SwitchSlot",
    "UseFieldAsLabel",
]


class FilterByFid(StepTransform):
    kind = "filter_by_fid"


class FilterByAction(StepTransform):
    kind = "filter_by_action"


class FilterByLabel(StepTransform):
    kind = "filter_by_label"


class FilterByValue(StepTransform):
    kind = "filter_by_value"


class FilterByFeatureValue(StepTransform):
    kind = "filter_by_feature_value"


class AnyOf(StepTransform):
    kind = "any_of"


class AllOf(StepTransform):
    kind = "all_of"


class NoneOf(StepTransform):
    kind = "none_of"


class LogicalOr(StepTransform):
    kind = "logical_or"


class SpecialStrategy(StepTransform):
    kind = "special_strategy"


class NegativeSample(StepTransform):
    kind = "negative_sample"


class SelectFlows(StepTransform):
    kind = "select_flows"


class RunFlows(StepTransform):
    kind = "run_flows"


class AddAction(StepTransform):
    kind = "add_action"


class AddLabel(StepTransform):
    kind = "add_label"


class ScatterLabel(StepTransform):
    kind = "scatter_label"


class MultiLabelGen(StepTransform):
    kind = "multi_label_gen"


class LabelUpperBound(StepTransform):
    kind = "label_upper_bound"


class LabelNormalization(StepTransform):
    kind = "label_normalization"


class UseFieldAsLabel(StepTransform):
    kind = "use_field_as_label"


class FillMultiRankOutput(StepTransform):
    kind = "fill_multi_rank_output"


class Reweight(StepTransform):
    kind = "reweight"


class GenerateNegatives(StepTransform):
    kind = "generate_negatives"


class SwitchSlot(StepTransform):
    kind = "switch_slot"


class CombineFeatures(StepTransform):
    kind = "combine_features"


class MaskFid(StepTransform):
    kind = "mask_fid"


class MapIds(StepTransform):
    kind = "map_ids"


class ExtractFids(StepTransform):
    kind = "extract_fids"


class ConvertFids(StepTransform):
    kind = "convert_fids"


class DecompressEmbedding(StepTransform):
    kind = "decompress_embedding"


class Project(StepTransform):
    kind = "project"


class ShardFids(StepTransform):
    kind = "shard_fids"
