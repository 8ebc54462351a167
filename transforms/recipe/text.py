"""Recipe files: YAML or JSON to `TransformConfig`; an error names the line of what is wrong.

    seed: 7
    action_ids: {click: 1, like: 2}
    steps:
      - filter_by_value: {field_name: uid, op: gt, int_operand: [0]}
      - negative_sample: {drop_rate: 0.5, threshold: 0.5, correct_sample_rate: true}
        id: sample-negatives

A list of integers may also be a text such as "17, 42", as flags of Monolith have it.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError

MAX_BYTES = 4 << 20
# A few lines of YAML with aliases can stand for billions of values; no recipe that somebody writes has so many.
_MAX_NODES = 200_000

_BASIC = pb.BasicTransformConfig.DESCRIPTOR
_LOGICAL_OR = "logical_or"
KINDS: tuple[str, ...] = (*_BASIC.fields_by_name, _LOGICAL_OR)
"""The kinds of steps: each is the key of a step in a recipe."""

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}
_FLOATS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}


@dataclass
class RecipeText:
    """A recipe and where each of its settings is written.

    Attributes:
      config: the recipe.
      name: name of the file, for messages.
      lines: {path such as `steps[2].filter_by_value.op`: number of the line, from 1}.
    """

    config: pb.TransformConfig
    name: str
    lines: dict[str, int] = field(default_factory=dict)

    def located(self, path: str, error: UserError) -> UserError:
        """`error`, which is about the setting at `path`, with the file and the line of the setting."""
        known = path
        while known and known not in self.lines:
            known = known[: max(known.rfind("."), known.rfind("["))] if "." in known or "[" in known else ""
        line = self.lines.get(known, 1)
        return UserError(f"{self.name}:{line}: {path}", error.value, error.problem, error.remedy)


def read_recipe(path: Path | str) -> RecipeText:
    """The recipe in a YAML or JSON file; UserError names the file, line and field of the first mistake."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError("--recipe", path, f"cannot be read ({error.strerror})", "name a readable file") from error
    if len(data) > MAX_BYTES:
        raise UserError("--recipe", path, f"has {len(data)} bytes", f"keep it below {MAX_BYTES}")
    try:
        return parse_recipe(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError("--recipe", path, f"is not UTF-8 at byte {error.start}", "write YAML or JSON") from error


def parse_recipe(text: str, name: str = "recipe") -> RecipeText:
    """The recipe in `text`; UserError names `name`, the line and the field of the first mistake."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError(where, "", problem, "write YAML or JSON") from error
    except RecursionError:
        raise UserError(name, "", "nested too deeply", "write steps one below the other") from None
    return _Reader(name).read(root)


class _Reader:
    """Walks the nodes of one YAML document and notes the line of each setting."""

    def __init__(self, name: str) -> None:
        self._text = RecipeText(pb.TransformConfig(), name)
        self._nodes = 0

    def read(self, root: yaml.Node | None) -> RecipeText:
        if root is None:
            raise UserError(self._text.name, "", "empty", "write `steps:` and a list of steps")
        config = self._text.config
        for key, node, path in self._entries(root, ""):
            if key == "steps":
                for item, where in self._items(node, path):
                    self._step(item, where, config.configs.add())
            elif key in ("seed", "action_ids"):
                self._set(config, config.DESCRIPTOR.fields_by_name[key], node, path)
            else:
                self._unknown(key, path, ("steps", "seed", "action_ids"))
        return self._text

    def _step(self, node: yaml.Node, path: str, config: pb.OneTransformConfig) -> None:
        kinds = []
        for key, value, where in self._entries(node, path):
            if key == "id":
                config.id = self._scalar(value, where, str)
                continue
            kinds.append(key)
            if key == _LOGICAL_OR:
                self._logical_or(value, where, config.logical_or_config)
            else:
                self._basic(key, value, where, config.basic_config)
        self._expect_one(kinds, path)

    def _logical_or(self, node: yaml.Node, path: str, config: pb.LogicalOrConfig) -> None:
        for key, value, where in self._entries(node, path):
            if key not in ("x", "y"):
                self._unknown(key, where, ("x", "y"))
            self._leaf(value, where, getattr(config, key))

    def _leaf(self, node: yaml.Node, path: str, config: pb.BasicTransformConfig) -> None:
        kinds = []
        for key, value, where in self._entries(node, path):
            self._basic(key, value, where, config)
            kinds.append(key)
        self._expect_one(kinds, path)

    def _basic(self, kind: str, node: yaml.Node, path: str, config: pb.BasicTransformConfig) -> None:
        if kind not in _BASIC.fields_by_name:
            self._unknown(kind, path, KINDS)
        getattr(config, kind).SetInParent()
        self._message(getattr(config, kind), node, path)

    def _expect_one(self, kinds: list[str], path: str) -> None:
        if len(kinds) != 1:
            found = ", ".join(kinds) or "no kind"
            self._fail(path, found, "a step has one kind", f"choose one of {', '.join(KINDS)}")

    def _message(self, message: Message, node: yaml.Node, path: str) -> None:
        if isinstance(message, pb.BasicTransformConfig):
            self._leaf(node, path, message)
            return
        if isinstance(message, pb.OneTransformConfig):
            self._step(node, path, message)
            return
        known = message.DESCRIPTOR.fields_by_name
        for key, value, where in self._entries(node, path):
            if key not in known:
                self._unknown(key, where, known)
            self._set(message, known[key], value, where)

    def _set(self, message: Message, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._map(message, field, node, path)
        elif field.is_repeated and field.cpp_type in _INTEGERS and _is_text(node):
            self._integers(getattr(message, field.name), field, node, path)
        elif field.is_repeated:
            target = getattr(message, field.name)
            for item, where in self._items(node, path):
                if field.message_type is not None:
                    self._message(target.add(), item, where)
                else:
                    self._put(target.append, field, item, where)
        elif field.message_type is not None:
            target = getattr(message, field.name)
            target.SetInParent()
            self._message(target, node, path)
        else:
            self._put(lambda value: setattr(message, field.name, value), field, node, path)

    def _integers(self, target: Any, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        """A list of integers that is written as a text of numbers and commas."""
        try:
            numbers = parse_integers(node.value)
        except ValueError as error:
            self._fail(path, node.value[:80], str(error), "write whole numbers with commas between them")
        for number in numbers:
            try:
                target.append(number)
            except ValueError:
                self._fail(path, number, "out of range", f"give values of type {_type_name(field)}")

    def _map(self, message: Message, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        target = getattr(message, field.name)
        for key, value, where in self._entries(node, path):
            name: Any = key
            if key_field.cpp_type in _INTEGERS:
                try:
                    name = int(key)
                except ValueError:
                    self._fail(where, key, "the key is not a whole number", "give a whole number")
            if value_field.message_type is not None:
                self._message(target[name], value, where)
            else:
                self._put(lambda item, name=name: target.__setitem__(name, item), value_field, value, where)

    def _put(self, put: Any, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        value = self._value(field, node, path)
        try:
            put(value)
        except (ValueError, TypeError):
            self._fail(path, value, "out of range", f"give a value of type {_type_name(field)}")

    def _value(self, field: FieldDescriptor, node: yaml.Node, path: str) -> Any:
        if field.enum_type is not None:
            text = self._scalar(node, path, str)
            values = field.enum_type.values_by_name
            if text.upper() not in values:
                self._fail(path, text, "unknown", f"choose {', '.join(values)}")
            return values[text.upper()].number
        if field.cpp_type in _INTEGERS:
            return self._scalar(node, path, int)
        if field.cpp_type in _FLOATS:
            return float(self._scalar(node, path, (int, float)))
        return self._scalar(node, path, bool if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else str)

    def _scalar(self, node: yaml.Node, path: str, wanted: Any) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self._fail(path, "", "not a single value", f"give {_words(wanted)}")
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError):
            self._fail(path, node.value, "cannot be read", f"give {_words(wanted)}")
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            self._fail(path, node.value, "wrong type", f"give {_words(wanted)}")
        return value

    def _entries(self, node: yaml.Node, path: str) -> Iterable[tuple[str, yaml.Node, str]]:
        """(key, value, path of the value) of each entry of a mapping; a key that is given twice is an error."""
        if not isinstance(node, yaml.MappingNode):
            self._fail(path, getattr(node, "value", "")[:80], "not a mapping", "write `name: value` lines")
        seen = set()
        for key_node, value in node.value:
            key = str(key_node.value)
            where = f"{path}.{key}" if path else key
            self._note(where, key_node)
            if key in seen:
                self._fail(where, key, "given twice", "keep one of them")
            seen.add(key)
            yield key, value, where

    def _items(self, node: yaml.Node, path: str) -> Iterable[tuple[yaml.Node, str]]:
        if not isinstance(node, yaml.SequenceNode):
            self._fail(path, getattr(node, "value", ""), "not a list", "write [a, b] or lines that begin with `-`")
        for index, item in enumerate(node.value):
            where = f"{path}[{index}]"
            self._note(where, item)
            yield item, where

    def _note(self, path: str, node: yaml.Node) -> None:
        self._nodes += 1
        self._text.lines[path] = node.start_mark.line + 1
        if self._nodes > _MAX_NODES:
            self._fail(path, "", f"more than {_MAX_NODES} values", "write less, or without aliases")

    def _unknown(self, key: str, path: str, known: Iterable[str]) -> NoReturn:
        near = difflib.get_close_matches(key, known, 1)
        remedy = f"did you mean {near[0]}? choose {', '.join(known)}" if near else f"choose {', '.join(known)}"
        self._fail(path, "", "unknown field", remedy)

    def _fail(self, path: str, value: object, problem: str, remedy: str) -> NoReturn:
        raise self._text.located(path or "steps", UserError(path, value, problem, remedy))


def parse_integers(text: str) -> list[int]:
    """The integers of a comma-separated list, in which items may be empty; ValueError naming an item that is none."""
    numbers = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        try:
            numbers.append(int(item))
        except ValueError:
            raise ValueError(f"Invalid integer string: {item}") from None
    return numbers


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"


def _type_name(field: FieldDescriptor) -> str:
    names = {
        FieldDescriptor.CPPTYPE_INT32: "int32",
        FieldDescriptor.CPPTYPE_INT64: "int64",
        FieldDescriptor.CPPTYPE_UINT32: "uint32",
        FieldDescriptor.CPPTYPE_UINT64: "uint64",
        FieldDescriptor.CPPTYPE_FLOAT: "float",
        FieldDescriptor.CPPTYPE_DOUBLE: "double",
    }
    return names.get(field.cpp_type, "string")


def _words(wanted: Any) -> str:
    return {str: "text", int: "a whole number", bool: "true or false"}.get(wanted, "a number")
