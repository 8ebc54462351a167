"""A client of Confluent's schema registry: schemas by number, and the number of a schema; settings come from a file."""

import configparser
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from millrace.runtime.errors import UserError

_SECONDS = 10.0
_MAX_BYTES = 1 << 20
_UNKNOWN_SECONDS = 30.0  # an unknown number is asked again after this time: it may be registered by then
_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
_KEYS = ("schema.registry.url", "basic.auth.user.info", "ssl.ca.location")


class RegistryError(RuntimeError):
    """The registry did not answer, or not with a schema; trying again may help."""


@dataclass(frozen=True)
class RegistrySettings:
    """Where the registry is and how to talk to it.

    Attributes:
      url: `http[s]://host:port`.
      user, password: of basic authentication; None without.
      ca_file: certificates that the server's must lead to; None: those of the system.
    """

    url: str
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @classmethod
    def from_file(cls, path: str, field_name: str = "schema_registry") -> "RegistrySettings":
        """Reads `key=value` lines: schema.registry.url, basic.auth.user.info (`user:password`), ssl.ca.location.

        Raises: UserError, which never quotes a value of the file.
        """
        parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
        try:
            parser.read_string("[registry]\n" + Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            problem = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(field_name, path, f"cannot be read ({problem})", "name a readable file") from error
        except configparser.Error:
            raise UserError(field_name, path, "has a line that is not key=value", "correct it") from None
        found = dict(parser["registry"])
        unknown = sorted(set(found) - set(_KEYS))
        if unknown:
            raise UserError(field_name, path, f"{unknown[0]} is no setting", f"choose {', '.join(_KEYS)}")
        url = found.get("schema.registry.url", "")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise UserError(field_name, path, "schema.registry.url is no http(s) address", "write http[s]://host:port")
        user, colon, password = found.get("basic.auth.user.info", "").partition(":")
        if user and not colon:
            raise UserError(field_name, path, "basic.auth.user.info has no colon", "write user:password")
        return cls(url.rstrip("/"), user or None, password if user else None, found.get("ssl.ca.location"))


class SchemaRegistry:
    """Looks schemas up, each once; safe to use from many threads, and cheap to pickle."""

    def __init__(self, settings: RegistrySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._lock = threading.Lock()
        self._schemas: dict[int, Mapping[str, Any]] = {}
        self._unknown: dict[int, float] = {}
        self._client: httpx.Client | None = None

    def lookup(self, schema_id: int) -> Mapping[str, Any] | None:
        """The schema with this number; None when the registry has none such.

        Raises: RegistryError when it does not answer, UserError when it refuses the user.
        """
        with self._lock:
            if schema_id in self._schemas:
                return self._schemas[schema_id]
            if self._unknown.get(schema_id, self._clock()) > self._clock():
                return None
            answer = self._request("GET", f"/schemas/ids/{schema_id}")
            if answer is None:
                self._unknown[schema_id] = self._clock() + _UNKNOWN_SECONDS
                return None
            self._schemas[schema_id] = _schema_of(answer)
            return self._schemas[schema_id]

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        """The number of `schema` under `subject`, new or as it was. Raises: RegistryError, UserError."""
        text = json.dumps({key: value for key, value in schema.items() if not key.startswith("__")})
        with self._lock:
            answer = self._request("POST", f"/subjects/{quote(subject, safe='')}/versions", {"schema": text})
        if answer is None or not isinstance(answer.get("id"), int):
            raise RegistryError(f"{self._settings.url}: no number came back for subject {subject}")
        return int(answer["id"])

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The JSON object that the registry answers; None for 404."""
        try:
            with self._connected().stream(method, path, json=body) as response:
                data = _limited(response)
        except httpx.HTTPError as error:
            raise RegistryError(f"{self._settings.url}{path}: {type(error).__name__}") from error
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise UserError("schema_registry", self._settings.url, "refuses the user", "check basic.auth.user.info")
        if response.status_code != httpx.codes.OK:
            raise RegistryError(f"{self._settings.url}{path}: status {response.status_code}")
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise RegistryError(f"{self._settings.url}{path}: the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise RegistryError(f"{self._settings.url}{path}: the answer is no object")
        return answer

    def _connected(self) -> httpx.Client:
        if self._client is None:
            settings = self._settings
            auth = None if settings.user is None else httpx.BasicAuth(settings.user, settings.password or "")
            verify: ssl.SSLContext | bool = True
            if settings.ca_file is not None:
                try:
                    verify = ssl.create_default_context(cafile=settings.ca_file)
                except OSError as error:
                    problem = f"cannot be read ({error.strerror})"
                    raise UserError("ssl.ca.location", settings.ca_file, problem, "name a PEM file") from error
            self._client = httpx.Client(
                base_url=settings.url,
                auth=auth,
                verify=verify,
                timeout=_SECONDS,
                headers={"accept": _MEDIA_TYPE, "content-type": _MEDIA_TYPE},
                trust_env=False,
            )
        return self._client

    def __reduce__(self) -> tuple[Any, ...]:
        return SchemaRegistry, (self._settings,)


def _limited(response: httpx.Response) -> bytes:
    data = b""
    for part in response.iter_bytes():
        data += part
        if len(data) > _MAX_BYTES:
            raise RegistryError(f"{response.url.path}: the answer has more than {_MAX_BYTES} bytes")
    return data


def _schema_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of an answer; of another kind than Avro, one that no codec takes and that says what it is."""
    kind = answer.get("schemaType", "AVRO")
    if kind != "AVRO":
        return {"type": str(kind)}
    try:
        schema = json.loads(answer["schema"])
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryError("the registry's answer holds no schema") from error
    return schema if isinstance(schema, dict) else {"type": schema}
