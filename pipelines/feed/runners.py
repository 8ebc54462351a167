"""Starts and stops what runs a pipeline: Prism, Flink's job server, nothing (Direct), or Dataflow far away."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from millrace.runtime.artifacts import Progress, prism_binary
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.daemon import free_port
from millrace.runtime.errors import UserError
from millrace.runtime.flink_server import FlinkJobServer

_PRISM_SECONDS = 30.0
_SETUP_FILE = Path(__file__).resolve().parents[2] / "setup.py"  # of a checkout; an installed package has none

# Beam flags by runner; a user's own flag of the same name beats each of them.
# A cache of state would hold, and measure at each write, the log of a shard, which nobody reads (`shard_state`).
_COMMON = {"max_cache_memory_usage_mb": "0"}
_DIRECT = {"runner": "apache_beam.runners.portability.fn_api_runner.FnApiRunner"}
# Beam asks Prism for the job's states with this time-out, 300 s by default: no feed would outlive it.
_TEN_YEARS_SECONDS = "315360000"
_PRISM = {"runner": "PrismRunner", "environment_type": "LOOPBACK", "job_server_timeout": _TEN_YEARS_SECONDS}
_FLINK = {
    "runner": "PortableRunner",
    "environment_type": "LOOPBACK",
    "parallelism": "1",
    "max_bundle_time_mills": "100",
    "checkpointing_interval": "1000",
    "number_of_execution_retries": "20",
    "execution_retry_delay": "500",
    "state_backend": "filesystem",
}
_DATAFLOW = {"runner": "DataflowRunner", "experiments": "use_runner_v2"}
_DATAFLOW_NEEDS = ("project", "region", "temp_location")
# Any of these brings the package to the workers.
_DATAFLOW_PACKAGES = {"sdk_container_image", "setup_file", "extra_package", "extra_packages"}


@contextmanager
def started(
    runner: str, streaming: bool, flags: Sequence[str], folder: Path, progress: Progress = print
) -> Iterator[list[str]]:
    """Beam flags with which to submit a pipeline; what it takes to run it runs meanwhile and is stopped afterwards.

    A job server named by the user's `--job_endpoint` is used as it is.

    Args:
      flags: the user's own Beam flags (`--name=value` or `--name value`).
      folder: for logs and checkpoints; created when needed.

    Raises: UserError when the runner does not start or lacks a flag.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = names_of(flags)
    defaults = dict(_COMMON)
    if streaming:
        defaults["streaming"] = ""
    with ExitStack() as stack:
        if runner == "direct":
            defaults |= _DIRECT
        elif runner == "dataflow":
            defaults |= _dataflow_defaults(given)
        elif runner == "prism":
            defaults |= _PRISM
            if "job_endpoint" not in given:
                defaults["job_endpoint"] = stack.enter_context(_prism(folder, progress))
        else:
            defaults |= _FLINK | {"state_backend_storage_path": (folder.absolute() / "checkpoints").as_uri()}
            if "job_endpoint" not in given:
                defaults["job_endpoint"] = stack.enter_context(FlinkJobServer(folder, progress=progress)).job_endpoint
        yield [*_as_flags(defaults, given), *flags]


def names_of(flags: Sequence[str]) -> set[str]:
    """Names of the flags, without dashes and values."""
    return {flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")}


def _as_flags(defaults: Mapping[str, str], given: set[str]) -> list[str]:
    return [f"--{name}={value}" if value else f"--{name}" for name, value in defaults.items() if name not in given]


def _dataflow_defaults(given: set[str]) -> dict[str, str]:
    for name in _DATAFLOW_NEEDS:
        if name not in given:
            raise UserError(f"--{name}", "", "Dataflow needs it", f"add --{name}=...")
    if given & _DATAFLOW_PACKAGES:
        return dict(_DATAFLOW)
    if not _SETUP_FILE.exists():
        raise UserError(
            "--sdk_container_image", "", "Dataflow's workers need millrace, and Beam can build it from a checkout only",
            "build the Dockerfile's target beam-worker and name the image",
        )  # fmt: skip
    # Beam makes an sdist with setup.py, which reads this: the workers that build it need no op library.
    os.environ.setdefault("MILLRACE_WITHOUT_OPS", "1")
    return _DATAFLOW | {"setup_file": str(_SETUP_FILE)}


@contextmanager
def _prism(folder: Path, progress: Progress) -> Iterator[str]:
    """A Prism of our own on a free port; yields its job endpoint."""
    port = free_port()
    command = [str(prism_binary(progress)), f"--job_port={port}", "--serve_http=false", "--log_level=warn"]
    # Of a worker that was killed Prism does not always take notice: it would schedule bundles for ever.
    process = ChildProcess(
        "prism", [*command, "--idle_shutdown_timeout=60s"], folder, ready=False, ends_with_parent=True
    )
    process.start()
    try:
        process.wait_listening(port, _PRISM_SECONDS, "--runner", "prism")
        yield f"localhost:{port}"
    finally:
        process.stop(5.0)
