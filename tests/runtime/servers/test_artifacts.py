"""The cache of servers and runners: whole or absent, fetched once, clear when a program is missing."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.runtime.errors import UserError
from millrace.runtime.servers import artifacts

_MAVEN = """#!/bin/sh
for argument in "$@"; do case $argument in -DoutputDirectory=*) folder=${argument#-DoutputDirectory=};; esac; done
echo run >>"$CALLS"
touch "$folder/a.jar"
"""
# Downloads to the folder `module` beside the calls; what it "builds" is the line that Prism listens with.
_GO = """#!/bin/sh
echo "$@" >>"$CALLS"
case $1 in
  mod) echo "{"; echo "  \\"Dir\\": \\"$(dirname "$CALLS")/module\\""; echo "}" ;;
  build)
    echo golang.org/x/text; sleep "${BUILD_SECONDS:-0}"
    cp "$3/go/pkg/beam/runners/prism/internal/jobservices/server.go" "$7" ;;
esac
"""
_PRISM_SERVER = "go/pkg/beam/runners/prism/internal/jobservices/server.go"
_FAILING = """#!/bin/sh
echo run >>"$CALLS"
echo "[INFO] trying"
echo "[ERROR] Could not transfer artifact org.example:thing from central"
exit 1
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """tool(name, script) puts a program on PATH, in front of all others; the cache is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def write(name: str, script: str) -> None:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)

    write("java", "#!/bin/sh\n")
    return write


def _beam_module(folder: Path, listen: str) -> Path:
    """Beam's module as Go's cache holds it, with this line in the server of Prism; not writable."""
    module = folder / "module"
    server = module / _PRISM_SERVER
    server.parent.mkdir(parents=True)
    server.write_text(f"{listen}\n")
    for name in ("go.mod", "go.sum"):
        (module / name).touch(0o444)
    server.chmod(0o444)
    return module


def _calls(tmp_path: Path) -> int:
    return (tmp_path / "calls").read_text().count("run")


def test_jars_are_fetched_once_and_announced_once(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    tool("mvn", _MAVEN)
    said: list[str] = []
    first = artifacts.maven_jars("kafka", said.append)
    assert artifacts.maven_jars("kafka", said.append) == first
    assert (first / "a.jar").exists()
    assert said == ["fetching Kafka 4.1.1 from Maven (54 MB)"]
    assert _calls(tmp_path) == 1


def test_a_failed_download_leaves_nothing_and_says_why(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    tool("mvn", _FAILING)
    with pytest.raises(UserError, match="Could not transfer artifact.*check the network"):
        artifacts.maven_jars("zookeeper", lambda _: None)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    tool("mvn", _MAVEN)
    assert (artifacts.maven_jars("zookeeper", lambda _: None) / "a.jar").exists()


def test_patches_of_a_server_are_compiled_against_its_jars(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    tool("mvn", _MAVEN)
    tool("javac", f'#!/bin/sh\necho "$@" >{tmp_path}/javac\n')
    artifacts.maven_jars("flink", lambda _: None)
    arguments = (tmp_path / "javac").read_text().split()
    assert arguments[arguments.index("-cp") + 1].endswith("/*")
    assert arguments[arguments.index("-d") + 1].endswith("/classes")
    assert [Path(file).name for file in arguments if file.endswith(".java")] == [
        "BundleCheckpointHandlers.java",
        "ServerFactory.java",
    ]


def test_a_patch_that_does_not_compile_leaves_nothing(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    tool("mvn", _MAVEN)
    tool("javac", "#!/bin/sh\necho 'A.java:1: error: cannot find symbol'\nexit 1\n")
    with pytest.raises(UserError, match="patched classes of flink.*cannot find symbol"):
        artifacts.maven_jars("flink", lambda _: None)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_an_interrupted_download_is_never_half_used(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    """SIGKILL in the middle: the partial folder has another name, and the next call fetches again."""
    tool("mvn", _MAVEN + "kill -9 $PPID\nsleep 0.2\n")
    code = "from millrace.runtime.servers.artifacts import maven_jars; maven_jars('kafka')"
    killed = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True)
    assert killed.returncode == -9
    tool("mvn", _MAVEN)
    said: list[str] = []
    artifacts.maven_jars("kafka", said.append)
    assert len(said) == 1


def test_two_at_once_fetch_once(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    tool("mvn", _MAVEN.replace("touch", "sleep 0.3; touch"))
    threads = [threading.Thread(target=artifacts.maven_jars, args=("kafka", lambda _: None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert _calls(tmp_path) == 1


def test_prism_is_built_from_its_module_in_the_pinned_version(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    tool("go", _GO)
    module = _beam_module(tmp_path, 'net.Listen("tcp", fmt.Sprintf(":%d", port))')
    binary = artifacts.prism_binary(lambda _: None)
    assert binary.name == "prism" and binary.read_text() == 'net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))\n'
    assert [path.name for path in binary.parent.iterdir()] == ["prism"]
    download, build = (tmp_path / "calls").read_text().splitlines()
    assert download.endswith(f"github.com/apache/beam/sdks/v2@v{artifacts.PRISM_VERSION}")
    assert build.startswith("build ") and build.endswith("./go/cmd/prism")
    assert '":%d"' in (module / _PRISM_SERVER).read_text()


def test_a_prism_whose_listener_is_not_known_is_not_built(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    tool("go", _GO)
    _beam_module(tmp_path, 'net.Listen("tcp", address)')
    with pytest.raises(UserError, match="server.go is not the one that is known"):
        artifacts.prism_binary(lambda _: None)
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "program", "package"),
    [
        (lambda: artifacts.maven_jars("kafka", lambda _: None), "mvn", "maven"),
        (lambda: artifacts.prism_binary(lambda _: None), "go", "golang-go"),
    ],
)
def test_a_missing_program_names_its_debian_package(
    call: Callable[[], Path],
    program: str,
    package: str,
    tool: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match=f"program={program}: .*apt-get install {package}"):
        call()


def test_an_unwritable_cache_is_a_user_error(tool: Callable[[str, str], None], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="MILLRACE_CACHE"):
        artifacts.maven_jars("kafka", lambda _: None)


def test_a_slow_build_says_how_long_it_runs_and_what_it_does(
    tool: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("go", _GO)
    _beam_module(tmp_path, 'fmt.Sprintf(":%d", port)')
    monkeypatch.setenv("BUILD_SECONDS", "0.5")
    monkeypatch.setattr(artifacts, "_LOG_SECONDS", 0.1)
    monkeypatch.setattr(artifacts, "_TERMINAL_SECONDS", 0.1)
    said: list[str] = []
    artifacts.prism_binary(said.append)
    assert said[0].startswith("fetching Prism")
    assert f"  0:00 Prism {artifacts.PRISM_VERSION}, now golang.org/x/text" in said[1:]


def test_a_program_that_never_ends_is_stopped(
    tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("go", "#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(artifacts, "_FETCH_SECONDS", 0.2)
    with pytest.raises(UserError, match="not fetched within 0.2 s"):
        artifacts.prism_binary(lambda _: None)


@pytest.mark.parametrize(
    ("code", "mentions"), [(errno.EROFS, "name a writable folder"), (errno.ENOSPC, "free space there")]
)
def test_a_cache_that_is_read_only_or_full_is_a_user_error(
    code: int, mentions: str, tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("mvn", _MAVEN)

    def refuse(*_args: object, **_settings: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(artifacts.shutil, "copy", refuse)  # the first file that a fetch writes
    with pytest.raises(UserError, match=f"MILLRACE_CACHE=.*{os.strerror(code)}.*{mentions}"):
        artifacts.maven_jars("kafka", lambda _: None)


def test_a_disk_that_fills_while_a_program_writes_is_told_from_a_broken_network(
    tool: Callable[[str, str], None],
) -> None:
    tool("go", "#!/bin/sh\necho 'compile: writing output: write $WORK/b002/_pkg_.a: no space left on device'\nexit 1\n")
    with pytest.raises(UserError, match="the disk is full.*no space left.*free space.*MILLRACE_CACHE"):
        artifacts.prism_binary(lambda _: None)


def test_a_filled_cache_is_only_read(tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    tool("mvn", _MAVEN)
    first = artifacts.maven_jars("kafka", lambda _: None)
    monkeypatch.setattr(artifacts, "_locked", None)  # to write anything it would need the lock
    assert artifacts.maven_jars("kafka", lambda _: None) == first
