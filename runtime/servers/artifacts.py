"""Fetches the pinned servers and runners into a cache: jars by Maven, Prism by Go."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from millrace.runtime.deadline import Deadline
from millrace.runtime.errors import UserError

# Equal to the apache-beam of constraints.txt: runner and SDK are released together.
PRISM_VERSION = "2.77.0"

_PRISM_MODULE = "github.com/apache/beam/sdks/v2"
_PRISM_SERVER = "go/pkg/beam/runners/prism/internal/jobservices/server.go"
# What Prism's job port listens on, as released and as built here.
_ANY_INTERFACE, _LOOPBACK = 'fmt.Sprintf(":%d", port)', 'fmt.Sprintf("127.0.0.1:%d", port)'

_COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_FETCH_SECONDS = 1800.0  # several times what a slow line or a busy machine takes: only what hangs is given up
# Between two lines that say how far a fetch is: a person waits for them, a log only has to show that it goes on.
_TERMINAL_SECONDS, _LOG_SECONDS = 10.0, 30.0
_KEPT_LINES = 1000  # of a program's output: an error of Maven or Go is far shorter
_POMS = Path(__file__).with_name("poms")
# Java classes that replace classes of the jars, one folder per name of a pom.
_PATCHES = Path(__file__).with_name("patches")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Tool:
    """A program that has to be installed, and how to install it."""

    program: str
    remedy: str


_JDK = "install JDK 17 (Debian: apt-get install openjdk-17-jdk-headless)"
_JAVA, _JAVAC = _Tool("java", _JDK), _Tool("javac", _JDK)
_MAVEN = _Tool("mvn", "install Maven (Debian: apt-get install maven)")
_GO = _Tool("go", "install Go 1.21 or newer (Debian: apt-get install golang-go, or https://go.dev/dl)")

# Name of a pom -> what is fetched, with its size.
_MAVEN_SETS = {
    "kafka": "Kafka 4.1.1 from Maven (54 MB)",
    "zookeeper": "ZooKeeper 3.9.4 from Maven (13 MB)",
    "flink": "the Flink 1.19 job server from Maven (156 MB)",
}


def cache_folder() -> Path:
    """$MILLRACE_CACHE, else `millrace` in the user's cache folder."""
    given = os.environ.get("MILLRACE_CACHE")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace"


def java_program() -> str:
    """Path of `java`; UserError when there is none."""
    return _find(_JAVA)


def maven_jars(name: str, progress: Progress = print) -> Path:
    """Folder with the jars of runtime/servers/poms/<name>.xml, fetched on first use.

    Its folder `classes` holds what patches/<name> compiles to.

    Args:
      name: "kafka", "zookeeper" or "flink".
      progress: told in one line that something is fetched, then now and then how far it is.

    Raises:
      UserError: Java or Maven is missing, the download fails, or the cache cannot be written.
    """
    pom = _POMS / f"{name}.xml"
    patches = sorted((_PATCHES / name).glob("*.java"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in (pom, *patches))).hexdigest()[:12]
    _find(_JAVA)

    def fetch(folder: Path) -> None:
        # Maven writes next to its pom's folder; read-only installations are possible.
        shutil.copy(pom, folder / "pom.xml")
        command = [_find(_MAVEN), "-B", "-q", "-ntp", "-Dstyle.color=never", "-f", str(folder / "pom.xml")]
        _run([*command, _COPY_DEPENDENCIES, f"-DoutputDirectory={folder}"], "maven", _MAVEN_SETS[name], {}, progress)
        if patches:
            command = [_find(_JAVAC), "-nowarn", "-cp", f"{folder}/*", "-d", str(folder / "classes")]
            _run([*command, *map(str, patches)], "javac", f"patched classes of {name}", {}, progress)

    return _cached(f"{name}-{digest}", _MAVEN_SETS[name], fetch, progress)


def prism_binary(progress: Progress = print) -> Path:
    """Path of Beam's Prism runner, built from its Go module on first use: 4 minutes, or 8 on a busy machine.

    Its job port listens on 127.0.0.1: whoever reaches that port can have any command run.

    Args:
      progress: told in one line that it is built, then now and then which of Go's packages is done.

    Raises:
      UserError: Go is missing, the build fails, or the cache cannot be written.
    """
    what = f"Prism {PRISM_VERSION} from its Go module (4 to 8 minutes)"

    def fetch(folder: Path) -> None:
        source = folder / "source"
        _copy_prism_source(source, what, progress)
        # -v: Go names each module that it downloads and each package that it compiles. -trimpath: the result does not
        # depend on the folder, so a build that was interrupted goes on where it was.
        command = [_find(_GO), "build", "-C", str(source), "-v", "-trimpath", "-o", str(folder / "prism")]
        _run([*command, "./go/cmd/prism"], "go", what, {}, progress)
        shutil.rmtree(source)

    return _cached(f"prism-{PRISM_VERSION}-loopback", what, fetch, progress) / "prism"


def _copy_prism_source(folder: Path, what: str, progress: Progress) -> None:
    """The Go part of Beam's module in `folder`, with a job port on loopback; Go refuses to overlay its own cache."""
    with tempfile.TemporaryDirectory(prefix="millrace-go-") as empty:
        command = [_find(_GO), "mod", "download", "-C", empty, "-json", f"{_PRISM_MODULE}@v{PRISM_VERSION}"]
        lines = _run(command, "go", what, {"GOWORK": "off"}, progress)
    module = Path(json.loads("".join(lines))["Dir"])
    folder.mkdir()
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(module / name, folder / name)
    shutil.copytree(module / "go", folder / "go", copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):  # those of Go's cache may not be written
        path.chmod(0o755 if path.is_dir() else 0o644)
    server = folder / _PRISM_SERVER
    text = server.read_text("utf-8")
    if text.count(_ANY_INTERFACE) != 1:
        raise UserError("go", what, f"{_PRISM_SERVER} is not the one that is known", "report it with the version")
    server.write_text(text.replace(_ANY_INTERFACE, _LOOPBACK), "utf-8")


def _find(tool: _Tool) -> str:
    path = shutil.which(tool.program)
    if path is None:
        raise UserError("program", tool.program, "it is not on PATH", tool.remedy)
    return path


def _run(command: list[str], field: str, what: str, env: dict[str, str], progress: Progress) -> list[str]:
    """Runs `command` to its end, and returns its output; UserError with the line that says most, when it fails."""
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        reader = threading.Thread(target=_read_lines, args=(process, lines), daemon=True)
        reader.start()
        try:
            _wait(process, what, lines, progress)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                field, what, f"not fetched within {_FETCH_SECONDS:g} s", "check the network, run again"
            ) from error
        finally:
            process.kill()  # does nothing to one that has ended
        reader.join()
    if process.returncode:
        raise UserError(field, what, *_failure(list(lines)))
    return list(lines)


def _read_lines(process: "subprocess.Popen[str]", lines: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            lines.append(line.strip())


def _wait(process: "subprocess.Popen[str]", what: str, lines: deque[str], progress: Progress) -> None:
    """Returns when `process` has ended, and says meanwhile how long it runs and what it did last."""
    deadline = Deadline(_FETCH_SECONDS)
    seconds = _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
    while True:
        try:
            process.wait(min(seconds, deadline.remaining()))
            return
        except subprocess.TimeoutExpired:
            if deadline.expired():
                raise
        minutes, rest = divmod(int(_FETCH_SECONDS - deadline.remaining()), 60)
        last = f", now {lines[-1][:100]}" if lines else ""
        progress(f"  {minutes}:{rest:02} {what.partition(' from ')[0]}{last}")


def _failure(lines: list[str]) -> tuple[str, str]:
    """Problem and remedy of a program that failed with this output."""
    full = next((line for line in lines if os.strerror(errno.ENOSPC).lower() in line.lower()), None)
    if full is not None:
        return f"the disk is full ({full[:300]})", "free space there, or name another cache with MILLRACE_CACHE"
    errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["no output"]
    return f"cannot be fetched ({errors[0][:300]})", "check the network, run again"


def _cached(name: str, what: str, fetch: Callable[[Path], None], progress: Progress) -> Path:
    """The cache folder `name`, filled by `fetch(folder)` unless it exists.

    It is filled under another name and renamed when whole, under a lock: neither an interrupted download nor a second
    process ever sees half of it. A folder that exists is only read, so a filled cache may be read-only.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{name}.lock")):
            if not folder.is_dir():
                progress(f"fetching {what}")
                _fill(folder, fetch)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space there, or name another folder" if full else "name a writable folder"
        raise UserError(
            "MILLRACE_CACHE", folder.parent, f"cannot be written ({error.strerror}) for {what}", remedy
        ) from error
    return folder


def _fill(folder: Path, fetch: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fetch(temporary)
        os.chmod(temporary, 0o755)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the kernel releases it when the process ends, however that happens."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
