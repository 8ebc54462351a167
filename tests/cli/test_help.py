"""What help texts and documents tell a user to type: it parses, and names tasks, models and files that there are."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.cli import main
from millrace.training.task import Task, load_task

ROOT = Path(main.__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Folders that the example of one command writes and that of another reads.
WRITTEN = ("/tmp/feed", "rows", "my-ratings")
READ_FLAGS = ("base_path", "input", "data", "path", "impression_files", "action_files")
MODEL_FLAGS = ("model", "model_name")


def helped(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main._parse([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def command_lines(text: str) -> Iterator[str]:
    """Indented or fenced shell lines that begin with `millrace`; a trailing backslash goes on in the next line."""
    joined = re.sub(r"\\\n\s*", " ", text)
    yield from re.findall(
        r"^(?: {2,}|)(?:\w+=\S+ +)*(?:\.venv/bin/)?(millrace +[a-z](?:'[^'\n]*'|[^|>;&\n'])*)", joined, re.M
    )


def parsed(line: str) -> argparse.Namespace:
    """What the real parser makes of a shell line."""
    try:
        return main._parse(shlex.split(line, comments=True)[1:])
    except SystemExit as ended:
        raise AssertionError(f"does not parse: {line}") from ended


def check_that_names_exist(arguments: argparse.Namespace) -> None:
    if task := getattr(arguments, "task", None):
        load_task(task)
    for flag in MODEL_FLAGS:
        if model := getattr(arguments, flag, None):
            assert model in shipped_models(), f"no task has the name {model}"
    if arguments.command == "predict":
        columns = {feature.input_name for feature in shipped_models()[arguments.model].features}
        assert {each.partition("=")[0] for each in arguments.input} == columns
        return
    for flag in READ_FLAGS:
        value = getattr(arguments, flag, None)
        if isinstance(value, str | Path):
            assert str(value).startswith(WRITTEN) or (ROOT / value).exists(), f"there is no {value}"


def shipped_models() -> dict[str, Task]:
    """{model name: task} of every task in examples/."""
    modules = [
        importlib.import_module(f"millrace.examples.{path.stem}")
        for path in sorted((ROOT / "examples").glob("[!_]*.py"))
    ]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return {each.name: each() for each in classes if issubclass(each, Task) and each is not Task}


@pytest.mark.parametrize(
    "words",
    [
        *(name.split() for name in main._available()),
        ["events", "generate"],
        ["events", "replay"],
        ["events", "ratings"],
    ],
)
def test_help_ends_in_an_example_that_parses_and_names_what_exists(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = helped(words, capsys)
    lines = list(command_lines(text.rpartition("Example:\n")[2]))
    assert lines, "no example"
    for line in lines:
        assert line.split()[1 : 1 + len(words)] == words
        check_that_names_exist(parsed(line))


def test_help_lists_an_example_too(capsys: pytest.CaptureFixture[str]) -> None:
    for line in command_lines(helped([], capsys).rpartition("Example:\n")[2]):
        parsed(line)


@pytest.mark.parametrize("action", ["up", "down", "restart", "status", "logs", "fetch"])
def test_help_of_a_part_of_dev_works(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"millrace dev {action}" in helped(["dev", action], capsys)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_command_lines_of_a_document_parse(document: Path) -> None:
    text = document.read_text("utf-8")
    for line in command_lines(text):
        parsed(line)
    for name in re.findall(r"`millrace (\w+)", text):
        assert name in main._available(), f"there is no command {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_a_document_lead_to_a_file(document: Path) -> None:
    for link in re.findall(r"(?<!!)\[[^]]*\]\((?!https?:)([^)#]+)", document.read_text("utf-8")):
        assert (document.parent / link).exists(), f"{document.name} links to {link}"


@pytest.mark.slow
def test_the_task_in_the_readme_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    path = re.match(r"# (\S+)\.py\n", block)
    assert path is not None, "the block begins with the name of its file"
    file = tmp_path / f"{path[1]}.py"
    file.parent.mkdir(parents=True)
    file.write_text(block)
    monkeypatch.syspath_prepend(tmp_path)

    task = load_task(f"{path[1].replace('/', '.')}:ShopRanking")
    embeddings = {feature.name: keras.Input((feature.dim,), name=feature.name) for feature in task.features}
    outputs = task.build_model(embeddings, {})
    assert set(outputs) == {head.name for head in task.heads}
    assert all(logits.shape == (None, 1) for logits in outputs.values())
    assert task.feed_config().window_seconds == task.window_seconds
