"""`millrace serve`, `agent` and `predict`: what wrong flags and absent servers get."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from tests.fakes.exports import MODEL, write_export

_SECONDS = 60.0
AssertUserError = Callable[..., str]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        (["serve", "--model-name", "m", "--port", "x"], ["--port", "'x'"]),
        (["serve", "--no-deltas"], ["--model-name"]),
        (["serve", "--model-name", "m", "--request-threads", "0"], ["--request-threads", "'0'", "at least 1"]),
        (["serve", "--model-name", "m", "--no-deltas", "--model-root", "absent"], ["--model-root=absent", "no such"]),
        (["serve", "--model-name", "m", "--no-deltas", "--control-host", "0.0.0.0"], ["--model-root", "other hosts"]),
        (["serve", "--model-name", "m", "--max-staleness", "0"], ["--max-staleness", "above 0"]),
        (["serve", "--model-name", "m"], ["--kafka", "millrace dev up"]),
        (["serve", "--model-name", "m", "--no-deltas", "--base-path", "absent"], ["--base-path=absent", "no such"]),
        (["agent", "--model", "m"], ["--server"]),
        (["agent", "--model", "a:b", "--server", "h:1"], ["--model=a:b", "use letters"]),
        (["agent", "--model", "m", "--server", "h:1"], ["--kafka", "millrace dev up"]),
        (["agent", "--model", "m", "--server", "h:1", "--namespace", "a/b"], ["--namespace=a/b", "use letters"]),
        (["agent", "--model", "m", "--server", "h:1", "--require", "auk>1"], ["--require=auk>1", "at character 1"]),
        (["agent", "--model", "m", "--server", "h:1", "--pin", "0"], ["--pin", "'0'"]),
        (["predict", "--server", "h", "--model", "m"], ["--server", "HOST:PORT"]),
        (
            ["predict", "--server", "127.0.0.1:1", "--model", "m", "--input", "a=1"],
            ["--server=127.0.0.1:1", "no model server answers", "millrace serve"],
        ),
    ],
    ids=lambda value: " ".join(value) if len(value) > 1 and value[0][0] != "-" else None,
)
def test_a_wrong_setting_is_one_line(assert_user_error: AssertUserError, flags: list[str], mentions: list[str]) -> None:
    assert_user_error(*flags, mentions=mentions)


@pytest.mark.slow
def test_a_served_folder_is_predicted_from_the_shell(
    start_millrace: Callable[..., ChildProcess], run_millrace: Callable[..., object], tmp_path: Path
) -> None:
    write_export(tmp_path / "exports", 1, bias=0.25)
    flags = ["--port", "0", "--model-name", MODEL, "--base-path", str(tmp_path / "exports"), "--no-deltas"]
    server = start_millrace("serve", *flags)
    address = str(server.wait_ready(_SECONDS)["address"])
    wait_until(lambda: f"{MODEL}:1 AVAILABLE" in server.log_tail(), _SECONDS, "version 1")
    words = ["--input", "user_id=17", "--input", "item_id=3,9,2", "--input", "context.device=phone"]
    done = run_millrace("predict", "--server", address, "--model", MODEL, *words, "--json")
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    answer = json.loads(done.stdout)  # type: ignore[attr-defined]
    assert answer["outputs"]["click"] == [0.25] * 3
    port = address.rpartition(":")[2]
    taken = run_millrace("serve", "--port", port, "--control-port", "0", "--model-name", "m", "--no-deltas")
    assert taken.returncode == 2  # type: ignore[attr-defined]
    assert f"--port={port}" in taken.stderr  # type: ignore[attr-defined]
    assert server.stop() == 0
