"""The command line: one line for a user's error, exit codes, help that names an example, imports only when needed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.cli import main

RunCli = Callable[..., subprocess.CompletedProcess[str]]
AssertUserError = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[str]]:
    """command(body) -> start of a command line whose sub-command `dev` runs `body` (a function `_run(arguments)`)."""

    def make(body: str) -> list[str]:
        script = tmp_path / "script.py"
        script.write_text(
            "import sys, types\n"
            f"{body}\n"
            "def add_parser(subparsers):\n"
            "    subparsers.add_parser('dev').set_defaults(run=_run)\n"
            "sys.modules['millrace.cli.dev'] = types.SimpleNamespace(\n"
            "    add_parser=add_parser, __spec__=types.SimpleNamespace(submodule_search_locations=None))\n"
            "from millrace.cli import main\n"
            "main.run()\n"
        )
        return [sys.executable, str(script), "dev"]

    return make


def _run(command_line: list[str], *args: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(main.__file__).resolve().parents[1])
    return subprocess.run(
        [*command_line, *args], capture_output=True, text=True, timeout=60, env={"PYTHONPATH": root, "PATH": ""}
    )


def test_help_lists_every_command_that_exists(run_millrace: RunCli) -> None:
    done = run_millrace("--help")
    assert done.returncode == 0
    for name in main._available():
        assert f"\n  {name} " in done.stdout


def test_help_costs_no_heavy_import() -> None:
    code = (
        "import sys; from millrace.cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('tensorflow', 'apache_beam', 'pyarrow', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("args", "mentions"),
    [
        ((), ["COMMAND"]),
        (("fed",), ["fed", "choose from"]),
        (("--nope",), []),
        (("dev", "up", "--nope"), ["--nope"]),
        (("dev",), ["up|down"]),
        (("dev", "sideways"), ["sideways"]),
        (("dev", "logs", "--lines", "-1"), ["--lines"]),
        (("dev", "logs", "--lines", "many"), ["--lines", "many"]),
        (("dev", "logs", "mysql"), ["mysql", "kafka"]),
        (("dev", "status", "--js"), ["--js"]),
        (("dev", "fetch", "spark"), ["spark", "prism"]),
        (("events", "ratings", "x", "--seed", "-1"), ["--seed", "-1"]),
    ],
)
def test_a_wrong_command_or_flag_is_one_line_and_exit_code_two(
    args: tuple[str, ...], mentions: list[str], assert_user_error: AssertUserError
) -> None:
    assert_user_error(*args, mentions=mentions)


def test_a_state_folder_that_cannot_be_written_is_one_line(assert_user_error: AssertUserError, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_user_error("dev", "up", mentions=["MILLRACE_STATE"], env={"MILLRACE_STATE": str(tmp_path / "file")})


def test_a_missing_program_is_one_line(assert_user_error: AssertUserError) -> None:
    assert_user_error("dev", "up", mentions=["java", "openjdk-17-jdk-headless"], env={"PATH": "/nonexistent"})


def test_a_user_error_of_a_command_is_one_line(command: Callable[[str], list[str]]) -> None:
    line = command(
        "from millrace.runtime.errors import UserError\n"
        "def _run(arguments):\n    raise UserError('--port', 80, 'in use\\nby another', 'give another')"
    )
    done = _run(line)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "millrace dev: error: --port=80: in use by another; give another\n"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("ENOSPC", "free space there"),
        ("EROFS", "can be written"),
        ("EACCES", "permissions"),
        ("ENOTDIR", "a folder is needed"),
        ("EISDIR", "a file is needed"),
        ("EEXIST", "another path"),
    ],
)
def test_a_full_or_read_only_folder_is_one_line(command: Callable[[str], list[str]], code: str, remedy: str) -> None:
    body = (
        f"import errno, os\ndef _run(arguments):\n    raise OSError(errno.{code}, os.strerror(errno.{code}), '/data/x')"
    )
    done = _run(command(body))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("millrace dev: error: path=/data/x: ") and remedy in done.stderr


def test_a_demand_for_a_checkpoint_that_comes_too_early_ends_no_process(command: Callable[[str], list[str]]) -> None:
    done = _run(
        command("import os, signal\ndef _run(arguments):\n    os.kill(os.getpid(), signal.SIGUSR1)\n    return 0")
    )
    assert done.returncode == 0


def test_another_error_of_the_system_keeps_its_trace(command: Callable[[str], list[str]]) -> None:
    done = _run(command("def _run(arguments):\n    open('/nonexistent/file')"))
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_missing_program_of_the_demo_is_one_line(assert_user_error: AssertUserError, tmp_path: Path) -> None:
    environment = {"PATH": "/nonexistent", "MILLRACE_CACHE": str(tmp_path / "cache")}
    assert_user_error("demo", mentions=["java", "openjdk-17-jdk-headless"], env=environment)


def test_an_interrupt_is_exit_code_130_without_a_trace(command: Callable[[str], list[str]]) -> None:
    done = _run(command("def _run(arguments):\n    raise KeyboardInterrupt"))
    assert (done.returncode, done.stderr) == (130, "")


def test_sigterm_unwinds_what_a_command_had_begun(command: Callable[[str], list[str]]) -> None:
    done = _run(
        command(
            "import os, signal, time\n"
            "def _run(arguments):\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)\n"
            "    finally:\n"
            "        print('cleaned up')"
        )
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "cleaned up\n", "")


def test_a_reader_that_leaves_a_pipe_causes_no_trace(command: Callable[[str], list[str]]) -> None:
    line = command("def _run(arguments):\n    [print('x' * 1000) for _ in range(10000)]\n    return 0")
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(line)} | head -1"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(Path(main.__file__).resolve().parents[1]), "PATH": "/usr/bin:/bin"},
    )
    assert done.stderr == "" and len(done.stdout) == 1001


def test_a_command_may_take_flags_that_it_does_not_know(command: Callable[[str], list[str]]) -> None:
    line = command("def _run(arguments):\n    print(arguments.unknown)\n    return 0")
    script = Path(line[1])
    script.write_text(script.read_text().replace("run=_run)", "run=_run, accepts_unknown=True)"))
    assert _run(line, "--beam_option=1", "x").stdout == "['--beam_option=1', 'x']\n"
