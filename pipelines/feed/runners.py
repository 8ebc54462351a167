"""Starts and stops what runs a pipeline: Prism or Flink's job server; Direct and Dataflow need no process of ours."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from millrace.pipelines.feed.worker_pool import OnFailure, worker_pool
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.errors import UserError
from millrace.runtime.servers.artifacts import Progress, prism_binary
from millrace.runtime.servers.daemon import free_port
from millrace.runtime.servers.flink_server import FlinkJobServer

_PRISM_SECONDS = 30.0  # Prism listens within a second; a busy machine may take longer
_SETUP_FILE = Path(__file__).resolve().parents[2] / "setup.py"  # of a checkout; an installed package has none

# Beam flags by runner; a flag of the user replaces the one of the same name.
# No cache of state: it would keep the log of each shard, which is hardly ever read (`shard_state`), and measure it at
# each write.
_COMMON = {"max_cache_memory_usage_mb": "0"}
_DIRECT = {"runner": "apache_beam.runners.portability.fn_api_runner.FnApiRunner"}
# Beam waits for the job to end with this time-out. The default of 300 s would end every longer feed.
_TEN_YEARS_SECONDS = "315360000"
_PRISM = {"runner": "PrismRunner", "job_server_timeout": _TEN_YEARS_SECONDS}
_FLINK = {
    "runner": "PortableRunner",
    "parallelism": "1",
    "max_bundle_time_mills": "100",  # a bundle adds this much to the latency of a row at most
    "checkpointing_interval": "1000",  # ms; a restart reads again what came in this time
    "state_backend": "filesystem",
}
_DATAFLOW = {"runner": "DataflowRunner", "experiments": "use_runner_v2"}
_DATAFLOW_NEEDS = ("project", "region", "temp_location")
# Any of these brings the package to the workers.
_DATAFLOW_PACKAGES = {"sdk_container_image", "setup_file", "extra_package", "extra_packages"}


@contextmanager
def started(
    runner: str,
    streaming: bool,
    flags: Sequence[str],
    folder: Path,
    progress: Progress = print,
    on_failure: OnFailure = lambda _: None,
) -> Iterator[list[str]]:
    """Yields the Beam flags to submit a pipeline with, while the runner is up; stops the runner afterwards.

    With `--job_endpoint` among the flags of the user, that job server is used and none is started. Unless they say
    where workers run, those of Prism and Flink run in this process (`millrace.pipelines.feed.worker_pool`).

    Args:
      runner: one of `millrace.pipelines.feed.options.RUNNERS`.
      flags: Beam flags of the user (`--name=value` or `--name value`).
      folder: folder for logs and checkpoints; created when needed.
      progress: called with a few words on each step of the start.
      on_failure: called with what a bundle raised, of workers in this process.

    Raises: UserError when the runner does not start, or lacks a flag.
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
        if runner in ("prism", "flink") and workers_are_here(flags):
            flags = [flag for flag in flags if flag.partition("=")[0] != "--environment_type" and flag != "LOOPBACK"]
            given = names_of(flags)
            pool = worker_pool(_cache_bytes(flags), on_failure)
            defaults |= {"environment_type": "EXTERNAL", "environment_config": stack.enter_context(pool)}
        yield [*_as_flags(defaults, given), *flags]


def workers_are_here(flags: Sequence[str]) -> bool:
    """Whether the flags of the user leave the workers of Prism and Flink in this process."""
    return _value_of("environment_type", flags) in (None, "LOOPBACK")


def _value_of(name: str, flags: Sequence[str]) -> str | None:
    """The value of `--name=value` or `--name value`, the last one; None without the flag."""
    found = None
    for flag, after in pairwise([*flags, ""]):
        if flag == f"--{name}":
            found = after
        elif flag.startswith(f"--{name}="):
            found = flag.partition("=")[2]
    return found


def _cache_bytes(flags: Sequence[str]) -> int:
    name = "max_cache_memory_usage_mb"
    text = _value_of(name, flags) or _COMMON[name]
    if not text.isdecimal():
        raise UserError(f"--{name}", text, "not a number", "give megabytes")
    return int(text) << 20


def names_of(flags: Sequence[str]) -> set[str]:
    """The names of flags, without dashes and values."""
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
    """Runs Prism on a free port; yields its job endpoint."""
    port = free_port()
    command = [str(prism_binary(progress)), f"--job_port={port}", "--serve_http=false", "--log_level=warn"]
    # Prism does not always notice that its worker was killed, and would then schedule bundles for ever.
    process = ChildProcess(
        "prism", [*command, "--idle_shutdown_timeout=60s"], folder, ready=False, ends_with_parent=True
    )
    process.start()
    try:
        process.wait_listening(port, _PRISM_SECONDS, "--runner", "prism")
        yield f"127.0.0.1:{port}"
    finally:
        process.stop(5.0)
