"""The client of a schema registry against a small server on the loopback."""

import base64
import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from millrace.runtime.errors import UserError
from millrace.runtime.schema_registry import RegistryError, RegistrySettings, SchemaRegistry

SCHEMA = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"}]}
AUTH = "Basic " + base64.b64encode(b"me:s3cret").decode()


class Server(ThreadingHTTPServer):
    """Answers what `answers` holds by path, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, bytes]] = []
        self.authorization: str | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # noqa: N802 (the name is http.server's)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.path, body))
        status, answer = self.server.answers.get(self.path, (404, b"{}"))
        if self.server.authorization not in (None, self.headers.get("authorization")):
            status, answer = 401, b"{}"
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def registry(server: Server, **settings: str) -> SchemaRegistry:
    return SchemaRegistry(RegistrySettings(f"http://127.0.0.1:{server.server_port}", **settings))


def answer(**fields: object) -> tuple[int, bytes]:
    return 200, json.dumps(fields).encode()


def test_a_schema_is_asked_for_once(server: Server) -> None:
    server.answers["/schemas/ids/7"] = answer(schema=json.dumps(SCHEMA))
    client = registry(server)
    assert [client.lookup(7) for _ in range(3)] == [SCHEMA] * 3
    assert len(server.asked) == 1


def test_an_unknown_number_is_asked_for_again_after_a_while(server: Server) -> None:
    now = [100.0]
    client = SchemaRegistry(RegistrySettings(f"http://127.0.0.1:{server.server_port}"), clock=lambda: now[0])
    assert [client.lookup(7), client.lookup(7)] == [None, None]
    assert len(server.asked) == 1
    server.answers["/schemas/ids/7"] = answer(schema=json.dumps(SCHEMA))
    now[0] += 31
    assert client.lookup(7) == SCHEMA


def test_a_schema_is_registered_under_its_subject(server: Server) -> None:
    server.answers["/subjects/events%2Fa-value/versions"] = answer(id=12)
    assert registry(server).register("events/a-value", SCHEMA) == 12
    assert json.loads(json.loads(server.asked[0][1])["schema"]) == SCHEMA


def test_the_user_of_the_file_is_sent_and_never_shown(server: Server, tmp_path: Path) -> None:
    server.answers["/schemas/ids/7"] = answer(schema=json.dumps(SCHEMA))
    server.authorization = AUTH
    file = tmp_path / "registry.properties"
    url = f"http://127.0.0.1:{server.server_port}"
    file.write_text(f"schema.registry.url = {url}/\nbasic.auth.user.info = me:s3cret\n")
    settings = RegistrySettings.from_file(str(file))
    assert SchemaRegistry(settings).lookup(7) == SCHEMA
    assert "s3cret" not in repr(settings)
    with pytest.raises(UserError, match="refuses the user") as error:
        registry(server, user="me", password="wr0ng").lookup(7)
    assert "wr0ng" not in str(error.value)


@pytest.mark.parametrize("status", [(500, b"{}"), (200, b"no"), (200, b"[]"), (200, b"{}"), (200, b" " * (1 << 21))])
def test_an_answer_that_makes_no_sense_is_an_error_to_try_again(server: Server, status: tuple[int, bytes]) -> None:
    server.answers["/schemas/ids/7"] = status
    with pytest.raises(RegistryError):
        registry(server).lookup(7)


def test_a_registry_that_does_not_answer_is_an_error_to_try_again(server: Server) -> None:
    client = registry(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(RegistryError, match="ConnectError"):
        client.lookup(7)


def test_a_schema_that_is_not_avro_says_what_it_is(server: Server) -> None:
    server.answers["/schemas/ids/7"] = answer(schema='syntax = "proto3";', schemaType="PROTOBUF")
    assert registry(server).lookup(7) == {"type": "PROTOBUF"}


def test_a_registry_is_pickled_by_its_settings(server: Server) -> None:
    server.answers["/schemas/ids/7"] = answer(schema=json.dumps(SCHEMA))
    client = registry(server)
    client.lookup(7)
    assert pickle.loads(pickle.dumps(client)).lookup(7) == SCHEMA


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no http"),
        ("schema.registry.url = ftp://host", "no http"),
        ("schema.registry.url = http://me:s3cret@host", "no http"),
        ("schema.registry.url = http://host\nbasic.auth.user.info = s3cret", "no colon"),
        ("schema.registry.url = http://host\nuser = s3cret", "user is no setting"),
        ("s3cret", "not key=value"),
    ],
)
def test_a_wrong_file_is_refused_without_quoting_it(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "registry.properties"
    file.write_text(text)
    with pytest.raises(UserError, match=problem) as error:
        RegistrySettings.from_file(str(file))
    assert "s3cret" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        RegistrySettings.from_file(str(tmp_path / "none"))
    settings = RegistrySettings("https://127.0.0.1:1", ca_file=str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot be read"):
        SchemaRegistry(settings).lookup(1)
