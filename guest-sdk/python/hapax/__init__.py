"""Write Hapax message handlers in Python.

A handler is a function `handle(message)` in `handler.py`. What it asks for (SQL, state, outgoing
messages) commits together with the record that the message was handled, in one database
transaction, or not at all::

    from hapax import outbox, sql

    def handle(message):
        order = message.json()
        points = order["amount_cents"] // 100
        sql.defer("INSERT INTO t_points (order_id, points) VALUES ($1, $2)", order["order_id"], points)
        outbox.publish("points-credited", {"order_id": order["order_id"], "points": points})

Returning means done. `return Ignored("why")` means done, and there was nothing to do. Exceptions undo
everything that the message did:

| raised                                  | becomes                                          |
|-----------------------------------------|--------------------------------------------------|
| `Reject(reason)`, a body that is no JSON | parked at once                                   |
| `ConstraintError`, kind `foreign-key`   | retried: the parent's message is late            |
| `ConstraintError`, any other kind       | parked at once                                   |
| `Retry(reason, after=seconds)`          | retried, not before `after`                      |
| `OutboxError`                           | retried: a target can be added meanwhile         |
| every other exception                   | retried; its traceback is kept with the message  |

Outside of WebAssembly `hapax.testing` runs a handler without a database.
"""

from __future__ import annotations

import json as _json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Optional, Protocol
from uuid import UUID

__all__ = [
    "ConstraintError", "Ignored", "Json", "Message", "OutboxError", "Reject", "Retry",
    "Trace", "context", "log", "outbox", "sql", "state",
]


class Reject(Exception):
    """The message will never succeed: it is parked, where a person sees the reason."""


class Retry(Exception):
    """The message may succeed later."""

    def __init__(self, reason: str, after: Optional[float] = None):
        super().__init__(reason)
        #: Seconds until the next attempt at the earliest; `None` leaves it to the consumer.
        self.after = after


class ConstraintError(Exception):
    """A constraint has refused a statement. The statement had no effect, and the transaction goes on."""

    def __init__(self, kind: str, code: str, constraint: Optional[str], message: str):
        super().__init__(message)
        #: `unique`, `foreign-key`, `not-null`, `check`, `exclusion` or `other`.
        self.kind = kind
        #: SQLSTATE, or SQLite's extended result code.
        self.code = code
        #: Its name; SQLite tells `table.column`.
        self.constraint = constraint


class OutboxError(Exception):
    """A message cannot be sent: `kind` is `unknown-target`, `invalid` or `no-reply-to`."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Ignored:
    """Returned by a handler that had nothing to do. The reason is counted and logged."""

    reason: str


@dataclass(frozen=True)
class Json:
    """A parameter for a JSON column. A `dict` or a `list` is one by itself."""

    value: Any


@dataclass(frozen=True)
class Trace:
    """The W3C trace that a message belongs to."""

    #: 32 lower-case hex digits.
    trace_id: str
    #: 16 lower-case hex digits.
    span_id: str
    sampled: bool


@dataclass
class Message:
    """One message, as it was first delivered."""

    body: bytes
    exchange: str = ""
    routing_key: str = ""
    #: AMQP properties that are set, by name: `message_id`, `content_type`, `reply_to`, …
    properties: dict = field(default_factory=dict)
    headers: dict = field(default_factory=dict)

    def json(self) -> Any:
        """The body as JSON. A body that is none rejects the message."""
        try:
            return _json.loads(self.body)
        except ValueError as error:
            raise Reject(f"the body is not JSON: {error}") from error

    def text(self) -> str:
        """The body as text. A body that is no UTF-8 rejects the message."""
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise Reject(f"the body is not text: {error}") from error


class Host(Protocol):
    """What stands behind the functions below: the component's imports, or the double of `hapax.testing`."""

    def query(self, statement: str, parameters: tuple) -> tuple[list[str], list[list]]: ...
    def execute(self, statement: str, parameters: tuple) -> int: ...
    def defer(self, statement: str, parameters: tuple) -> None: ...
    def state_get(self, key: str) -> Optional[tuple[bytes, int]]: ...
    def state_put(self, key: str, value: bytes) -> None: ...
    def state_put_if(self, key: str, value: bytes, version: Optional[int]) -> bool: ...
    def state_delete(self, key: str) -> None: ...
    def publish(self, message: dict) -> str: ...
    def reply(self, body: bytes, content_type: Optional[str]) -> None: ...
    def context(self, name: str, *arguments: str) -> Any: ...
    def log(self, level: str, message: str, fields: list[tuple[str, str]]) -> None: ...


_host: Optional[Host] = None


def _now() -> Host:
    if _host is None:
        raise RuntimeError("no message is being handled; in a test, use hapax.testing.run")
    return _host


class _Sql:
    """SQL on the handler's own tables. Values are parameters, written `$1`, `$2`, … on every store.

    Python's values are taken as they are: `None`, `bool`, `int`, `float`, `str`, `bytes`, `Decimal`,
    `datetime` with a time zone, `UUID`, and `dict`, `list` or `Json` for JSON.
    """

    def query(self, statement: str, *parameters: Any) -> list[dict]:
        """Runs a SELECT, or a write with RETURNING, and returns its rows by column name."""
        columns, rows = _now().query(statement, parameters)
        return [dict(zip(columns, row)) for row in rows]

    def first(self, statement: str, *parameters: Any) -> Optional[dict]:
        """The first row, or `None`."""
        rows = self.query(statement, *parameters)
        return rows[0] if rows else None

    def execute(self, statement: str, *parameters: Any) -> int:
        """Runs a write now and returns the number of rows it touched."""
        return _now().execute(statement, parameters)

    def defer(self, statement: str, *parameters: Any) -> None:
        """Keeps a write for the end of the batch, where equal statements run together: the fastest way
        when the handler does not need to see the result."""
        _now().defer(statement, parameters)


class _State:
    """A small key-value table of this consumer, in the same transaction."""

    def get(self, key: str) -> Optional[bytes]:
        entry = _now().state_get(key)
        return entry[0] if entry else None

    def get_versioned(self, key: str) -> Optional[tuple[bytes, int]]:
        """The value and its version, which grows with every change."""
        return _now().state_get(key)

    def put(self, key: str, value: bytes) -> None:
        """Sets the value. After a `get` of the same key it holds only while nobody else has changed it; if
        somebody has, the message runs again by itself."""
        _now().state_put(key, value)

    def put_if(self, key: str, value: bytes, version: Optional[int]) -> bool:
        """Sets the value if the key has this version now, `None` for a key that does not exist."""
        return _now().state_put_if(key, value, version)

    def delete(self, key: str) -> None:
        _now().state_delete(key)


class _Outbox:
    """Messages that leave when, and only when, the transaction has committed."""

    def publish(
        self,
        target: str,
        body: Any,
        *,
        routing_key: Optional[str] = None,
        content_type: Optional[str] = None,
        headers: Optional[dict] = None,
        ordering_key: Optional[str] = None,
        delay: Optional[float] = None,
    ) -> str:
        """Sends a message to a target of the consumer's configuration and returns its id, which is equal in
        every attempt. `bytes` are sent as they are, anything else as JSON. `delay` is in seconds."""
        content, kind = _encoded(body)
        return _now().publish({
            "target": target,
            "body": content,
            "routing_key": routing_key,
            "content_type": content_type or kind,
            "headers": headers or {},
            "ordering_key": ordering_key,
            "delay": delay,
        })

    def reply(self, body: Any, *, content_type: Optional[str] = None) -> None:
        """Answers the message at its `reply_to`."""
        content, kind = _encoded(body)
        _now().reply(content, content_type or kind)


class _Context:
    """What the host knows about this execution."""

    @property
    def consumer(self) -> str:
        return _now().context("consumer")

    @property
    def key(self) -> bytes:
        """The idempotency key."""
        return _now().context("key")

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return _now().context("attempt")

    @property
    def redelivered(self) -> bool:
        return _now().context("redelivered")

    @property
    def now(self) -> datetime:
        """When this attempt began. It does not move while the handler runs."""
        return _EPOCH + timedelta(microseconds=_now().context("now"))

    @property
    def dialect(self) -> str:
        """`postgres`, `sqlite` or `mysql`."""
        return _now().context("dialect")

    @property
    def trace(self) -> Optional[Trace]:
        """The trace of the message's `traceparent` header."""
        return _now().context("trace")

    def new_id(self) -> str:
        """A UUID. The n-th call returns the same one in every attempt of this message."""
        return _now().context("new_id")

    def config(self, name: str) -> Optional[str]:
        """A value of the consumer's `config` table."""
        return _now().context("config", name)


class _Log:
    """Log lines, with the message's key attached by the host."""

    def _write(self, level: str, message: str, fields: dict) -> None:
        _now().log(level, message, [(name, str(value)) for name, value in fields.items()])

    def debug(self, message: str, **fields: Any) -> None:
        self._write("debug", message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self._write("info", message, fields)

    def warn(self, message: str, **fields: Any) -> None:
        self._write("warn", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._write("error", message, fields)


sql = _Sql()
state = _State()
outbox = _Outbox()
context = _Context()
log = _Log()

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _encoded(body: Any) -> tuple[bytes, Optional[str]]:
    if isinstance(body, (bytes, bytearray)):
        return bytes(body), None
    return _json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(), "application/json"


def _micros(time: datetime) -> int:
    if time.tzinfo is None:
        raise TypeError("a datetime needs a time zone: datetime.now(timezone.utc)")
    return (time - _EPOCH) // timedelta(microseconds=1)


def _outcome(handle: Any, host: Host, message: Message) -> tuple[str, Any]:
    """Runs a handler: `done`, `ignored` with a reason, `reject` with one, or `retry` with one and a delay
    in milliseconds."""
    global _host
    before, _host = _host, host
    try:
        answer = handle(message)
    except Retry as retry:
        after = None if retry.after is None else max(0, round(retry.after * 1000))
        return "retry", (str(retry), after)
    except Reject as reject:
        return "reject", str(reject)
    except ConstraintError as error:
        if error.kind == "foreign-key":
            return "retry", (f"foreign key: {error}", None)
        return "reject", f"{error.kind}: {error}"
    except OutboxError as error:
        return "retry", (f"outbox: {error}", None)
    finally:
        _host = before
    if isinstance(answer, Ignored):
        return "ignored", answer.reason
    if answer is not None:
        raise TypeError(f"a handler returns nothing or Ignored(reason), not {type(answer).__name__}")
    return "done", None
