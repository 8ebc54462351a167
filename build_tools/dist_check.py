"""Builds the sdist and from it the wheel, installs the wheel into a new environment, and uses it in an empty folder.

python -m build_tools.dist_check [FOLDER]     (run by `make dist-check`, with the environment of constraints.txt)

Prints what it does with the seconds since its start; the first step that fails ends it with exit code 1.
"""

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_BEGAN = time.monotonic()

# One file of each kind that is no module: what setup.py, CMake and grpcio-tools have to bring into the wheel.
_IN_WHEEL = (
    "ops/_millrace_ops.so",
    "ops/_millrace_ops.json",
    "ops/_millrace_records.so",
    "pipelines/beam_yaml.yaml",
    "examples/recipes/full.yaml",
    "protos/record.proto",
    "protos/record_pb2.py",
    "protos/record_pb2.pyi",
    "runtime/servers/poms/kafka.xml",
    "runtime/servers/patches/flink/BundleCheckpointHandlers.java",
)

_IMPORT_ALL = """
import importlib, pkgutil, millrace
names = [each.name for each in pkgutil.walk_packages(millrace.__path__, "millrace.")]
names = [name for name in names if "._millrace_" not in name]  # the C++ libraries, which no import loads
for name in names:
    importlib.import_module(name)
print(f"{len(names)} modules of {millrace.__path__[0]}")
"""

# A user's folder whose names are those of our own; they must not meet.
_USER_FILES = {
    "ops/__init__.py": "FACTOR = 1\n",
    "serving/__init__.py": "raise ImportError('a folder of the user that nothing imports')\n",
    "training/__init__.py": "",
    "training/shop.py": """
import ops
from millrace.examples.movies import MovieRanking

class Shop(MovieRanking):
    name = f"shop{ops.FACTOR}"
""",
}


def main() -> int:
    work = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else _ROOT / "build" / "dist-check"
    subprocess.run(["rm", "-rf", str(work)], check=True)
    folder = work / "user"
    folder.mkdir(parents=True)
    try:
        wheel = _build(work)
        _check_contents(wheel)
        _use(_install(work, wheel), folder)
    except subprocess.CalledProcessError as error:
        print(f"dist-check: exit code {error.returncode} of {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    _say("all is well")
    return 0


def _say(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:5.0f} s  {text}", flush=True)


def _build(work: Path) -> Path:
    """The wheel, built from an sdist: what the sdist lacks cannot come from the checkout."""
    _say("building the sdist")
    _run([sys.executable, "setup.py", "-q", "sdist", "-d", str(work / "dist")], _ROOT)
    (archive,) = (work / "dist").glob("millrace-*.tar.gz")
    _say("building the wheel from it (2 minutes)")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
    _run([*build, "--no-build-isolation", "-w", str(work / "dist"), str(archive)], work)
    (wheel,) = (work / "dist").glob("millrace-*.whl")
    return wheel


def _check_contents(wheel: Path) -> None:
    """Raises AssertionError unless the wheel holds every kind of file, and one top-level name."""
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = [name for name in _IN_WHEEL if f"millrace/{name}" not in names]
    assert not missing, f"{wheel.name} lacks {', '.join(missing)}"
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"millrace"}, f"top-level names: {top}"
    assert not any("/tests/" in name or name.endswith((".cc", ".h")) for name in names), "tests or C++ sources inside"
    _say(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MB, {len(names)} files")


def _install(work: Path, wheel: Path) -> Path:
    """Folder of the programs of a new environment that has the wheel and its dependencies as pinned."""
    _say("installing it into a new environment (3 minutes)")
    _run([sys.executable, "-m", "venv", str(work / "venv")], work)
    programs = work / "venv" / "bin"
    pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check"]
    # --no-compile: byte code of all packages would take a minute, and only what is imported needs it.
    _run([*pip, "install", "-q", "--no-compile", "-c", str(_ROOT / "constraints.txt"), str(wheel)], work)
    _run([*pip, "check"], work)
    return programs


def _use(programs: Path, folder: Path) -> None:
    """Runs commands in `folder`, which holds nothing of the checkout."""
    millrace = str(programs / "millrace")
    _say("millrace --help")
    _run([millrace, "--help"], folder, quiet=True)
    _say("importing every module")
    _run([str(programs / "python"), "-c", _IMPORT_ALL], folder)
    _say("training a task of a user's folder on generated ratings")
    for name, text in _USER_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    _run([millrace, "events", "ratings", "my-ratings", "--ratings", "3000"], folder)
    _run([millrace, "train", "--task", "training.shop:Shop", "--offline", "--input", "my-ratings"], folder)


def _run(command: list[str], cwd: Path, quiet: bool = False) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PYTHONNOUSERSITE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    stdout = subprocess.DEVNULL if quiet else None
    subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, check=True)


if __name__ == "__main__":
    sys.exit(main())
