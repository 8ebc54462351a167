"""A clock that can be stepped, of the Python code of one process."""

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock_shim.cc")


class SteppedClock:
    """Builds a library that shifts the clock of a process which is started with `environment`.

    Args:
      folder: for the library and the offset, which the processes share.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "clock_shim.so"
        command = ["g++", "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        self._offset = folder / "clock_offset"
        self._offset.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "MILLRACE_CHAOS_CLOCK": str(self._offset)}

    def step(self, seconds: int) -> None:
        """From now on the clock is `seconds` ahead of the machine's."""
        with open(self._offset, "r+b") as file:  # in place: the processes have it mapped
            file.write((seconds * 1_000_000).to_bytes(8, "little", signed=True))
