"""Temporary folders: what dead processes left goes, what a live one makes stays."""

import os
import subprocess
import sys
from pathlib import Path

from millrace.training.state.temporary_folder import remove_leftovers, temporary_name


def made(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    (path / "file").write_text("content")
    return path


def test_a_folder_of_this_process_stays_and_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    paths = {made(tmp_path, temporary_name("7")) for _ in range(3)}
    assert remove_leftovers(tmp_path) == [] and set(tmp_path.iterdir()) == paths


def test_a_folder_of_a_process_that_ended_goes(tmp_path: Path) -> None:
    code = "from millrace.training.state.temporary_folder import temporary_name; print(temporary_name('7'))"
    name = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    path = made(tmp_path, name)
    assert remove_leftovers(tmp_path) == [path] and not path.exists()


def test_a_number_of_a_process_that_is_used_again_hides_nothing(tmp_path: Path) -> None:
    stem, host, pid, started, number = temporary_name("7").split(".")
    path = made(tmp_path, f"{stem}.{host}.{pid}.{int(started) - 1}.{number}")
    assert remove_leftovers(tmp_path) == [path]


def test_a_folder_of_another_host_goes_when_it_has_not_changed_for_long(tmp_path: Path) -> None:
    stem, _, pid, started, number = temporary_name("7").split(".")
    path = made(tmp_path, f"{stem}.another-host.{pid}.{started}.{number}")
    for each in (path, path / "file"):
        os.utime(each, (1000, 1000))
    assert remove_leftovers(tmp_path, clock=lambda: 1599.0) == []
    assert remove_leftovers(tmp_path, clock=lambda: 1601.0) == [path]
