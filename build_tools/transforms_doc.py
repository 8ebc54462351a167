"""Writes docs/transforms.md from the docstrings of the steps and the comments of protos/transform_config.proto.

python -m build_tools.transforms_doc [--check]
"""

import argparse
import inspect
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.recipe.chain import STEPS
from millrace.transforms.steps.step import StatefulStep, Step

_ROOT = Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "docs" / "transforms.md"
_PROTOS = ("millrace/protos/transform_config.proto", "millrace/protos/sharded_batch.proto")
_HEAD = """\
# Transforms

The steps of a recipe: what each one does, its settings, an example, and its counters. `make docs` writes this page from
the code, and a test fails when it is out of date. The columns that rows have:
[transforms/README.md](../transforms/README.md).

A recipe is a file in YAML or JSON. Its steps run one after the other on batches of rows:

    seed: 7                            # seed of all random choices
    action_ids: {click: 1, like: 2}    # numbers of the actions of an event feed, which are names there
    steps:
      - filter_by_value: {field_name: uid, op: gt, int_operand: [0]}
      - negative_sample: {drop_rate: 0.5, threshold: 0.5, correct_sample_rate: true}
        id: sample                     # optional: a name of the step; its random choices depend on it

The same recipe runs in four places:

- `millrace feed --recipe FILE` and `millrace feed backfill --recipe FILE`, before rows become train blocks. A wrong
  setting is told with its line before anything starts.
- `millrace records convert --recipe FILE`, and `--where FILE` of `records head` and `records stat`.
- Beam pipelines in Python: `ApplyRecipe`, and one PTransform per step, in `transforms/beam/ptransforms.py`.
- Pipelines in Beam YAML, with the same names, by the provider `pipelines/beam_yaml.yaml`. Its `SplitFlows` and
  `MergeFlows` split rows by data source into several collections; `run_flows` does so within a recipe.

Of Parquet files, feeds and `records` read only the columns that the recipe and, in a feed, the task need. Examples:
`examples/recipes`.

Every step counts `rows_in` and `rows_out`: in Beam under `millrace.transforms.<step>`, and on `/metrics` as
`millrace_feed_step_rows_total{step, outcome}`.
"""


def page() -> str:
    """The whole page."""
    comments = _comments()
    listing = "\n".join(f"- [`{kind}`](#{kind}) {_summary(step)}" for kind, step in STEPS.items())
    return "\n".join([_HEAD, listing, *(_section(kind, step, comments) for kind, step in STEPS.items())]) + "\n"


def _section(kind: str, step: type[Step], comments: Mapping[str, str]) -> str:
    lines = [f"\n## {kind}\n", inspect.getdoc(step) or "", ""]
    if issubclass(step, StatefulStep) and step.stateful:
        lines += ["Stateful: its output depends on earlier rows. A feed keeps the state with its other state.", ""]
    lines += ["| setting | type | meaning |", "|---|---|---|"]
    lines += list(_settings(_message_of(kind), comments))
    if step.example:
        lines += ["", *(f"    {line}" for line in f"- {step.example.strip()}".replace("\n", "\n  ").splitlines())]
    if step.counters:
        lines += ["", "Counters: " + "; ".join(f"`{name}`, {text}" for name, text in step.counters.items()) + "."]
    return "\n".join(lines)


def _message_of(kind: str) -> Descriptor:
    fields = pb.BasicTransformConfig.DESCRIPTOR.fields_by_name
    return pb.LogicalOrConfig.DESCRIPTOR if kind == "logical_or" else fields[kind].message_type


def _settings(message: Descriptor, comments: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    for field in message.fields:
        meaning = comments.get(f"{message.full_name}.{field.name}", "")
        yield f"| `{prefix}{field.name}` | {_type(field)} | {meaning} |"
        nested = field.message_type
        if nested is not None and not nested.GetOptions().map_entry and nested not in _STEPS:
            yield from _settings(nested, comments, f"{prefix}{field.name}{'[]' if field.is_repeated else ''}.")


def _type(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return f"{_plain(key)} to {_plain(value)}"
    return f"list of {_plain(field)}" if field.is_repeated else _plain(field)


def _plain(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return ", ".join(f"`{value.name}`" for value in field.enum_type.values if value.number or value.name != _NONE)
    if field.message_type is not None:
        return "step" if field.message_type in _STEPS else "object"
    return _TYPES[field.type]


_STEPS = (pb.BasicTransformConfig.DESCRIPTOR, pb.OneTransformConfig.DESCRIPTOR)
_NONE = "METHOD_UNSPECIFIED"
_TYPES = {
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
}


def _summary(step: type[Step]) -> str:
    return (inspect.getdoc(step) or "").split("\n")[0]


def _comments() -> dict[str, str]:
    """{full name of a field: the comment after or above it}, from protoc, because compiled modules lack comments."""
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--include_source_info"]
        subprocess.run([*command, f"--descriptor_set_out={file.name}", *_PROTOS], cwd=_ROOT, check=True)
        files = FileDescriptorSet.FromString(Path(file.name).read_bytes()).file
    return {name: text for each in files for name, text in _comments_of(each)}


def _comments_of(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    names: dict[tuple[int, ...], str] = {}
    for index, message in enumerate(file.message_type):
        _name_fields(message, (4, index), f"{file.package}.{message.name}", names)
    for location in file.source_code_info.location:
        text = " ".join((location.leading_comments + location.trailing_comments).split())
        if text and tuple(location.path) in names:
            yield names[tuple(location.path)], text


def _name_fields(message: DescriptorProto, path: tuple[int, ...], name: str, names: dict[tuple[int, ...], str]) -> None:
    """Adds {path of a field in the file: its full name}."""
    for index, field in enumerate(message.field):
        names[(*path, 2, index)] = f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        _name_fields(nested, (*path, 3, index), f"{name}.{nested.name}", names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when the page is out of date")
    if not parser.parse_args().check:
        _PAGE.write_text(page(), "utf-8")
        return 0
    if _PAGE.exists() and _PAGE.read_text("utf-8") == page():
        return 0
    print("docs/transforms.md is out of date: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
