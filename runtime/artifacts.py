"""Fetches the pinned servers and runners into a cache: jars by Maven, Prism by Go."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from millrace.runtime.errors import UserError

# Equal to the apache-beam of constraints.txt: runner and SDK are released together.
PRISM_VERSION = "2.77.0"

_COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_FETCH_SECONDS = 1800
_POMS = Path(__file__).with_name("poms")
# Java classes that stand before those of the jars, by name of the pom.
_PATCHES = Path(__file__).with_name("patches")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Tool:
    """A program that has to be installed, and how."""

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
    """Folder with the jars of runtime/poms/<name>.xml, fetched on first use; below it `classes`, of patches/<name>.

    Args:
      name: "kafka", "zookeeper" or "flink".
      progress: told, in a few words, when something is fetched.

    Raises:
      UserError: Java or Maven is missing, or the download fails.
    """
    pom = _POMS / f"{name}.xml"
    patches = sorted((_PATCHES / name).glob("*.java"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in (pom, *patches))).hexdigest()[:12]
    _find(_JAVA)

    def fetch(folder: Path) -> None:
        # Maven writes next to its pom's folder; read-only installations are possible.
        shutil.copy(pom, folder / "pom.xml")
        command = [_find(_MAVEN), "-B", "-q", "-ntp", "-f", str(folder / "pom.xml")]
        _run([*command, _COPY_DEPENDENCIES, f"-DoutputDirectory={folder}"], "maven", _MAVEN_SETS[name], {})
        if patches:
            command = [_find(_JAVAC), "-nowarn", "-cp", f"{folder}/*", "-d", str(folder / "classes")]
            _run([*command, *map(str, patches)], "javac", f"classes before those of {name}", {})

    return _cached(f"{name}-{digest}", _MAVEN_SETS[name], fetch, progress)


def prism_binary(progress: Progress = print) -> Path:
    """Path of Beam's Prism runner, built from its Go module on first use (4 minutes).

    Raises:
      UserError: Go is missing, or the build fails.
    """
    what = f"Prism {PRISM_VERSION} from its Go module (about 4 minutes)"

    def fetch(folder: Path) -> None:
        module = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{PRISM_VERSION}"
        _run([_find(_GO), "install", module], "go", what, {"GOBIN": str(folder)})

    return _cached(f"prism-{PRISM_VERSION}", what, fetch, progress) / "prism"


def _find(tool: _Tool) -> str:
    path = shutil.which(tool.program)
    if path is None:
        raise UserError("program", tool.program, "it is not on PATH", tool.remedy)
    return path


def _run(command: list[str], field: str, what: str, env: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            field, what, f"not fetched within {_FETCH_SECONDS} s", "check the network, run again"
        ) from error
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["no output"]
        raise UserError(field, what, f"cannot be fetched ({errors[0][:300]})", "check the network, run again")


def _cached(name: str, what: str, fetch: Callable[[Path], None], progress: Progress) -> Path:
    """The cache folder `name`, filled by `fetch(folder)` unless it exists.

    It is filled under another name and renamed when whole, under a lock: neither an interrupted download nor a second
    process ever sees half of it.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "MILLRACE_CACHE", folder.parent, f"cannot be created ({error.strerror})", "name a writable folder"
        ) from error
    with _locked(folder.with_name(f".{name}.lock")):
        if folder.is_dir():
            return folder
        progress(f"fetching {what}")
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            fetch(temporary)
            os.chmod(temporary, 0o755)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; it goes with the process, however that ends."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
