"""Runs a handler without WebAssembly and without a database::

    from hapax.testing import run
    from handler import handle

    def test_an_order_is_credited():
        ran = run(handle, {"order_id": "o-1", "user_id": "ada", "amount_cents": 1299})
        assert ran.outcome == "done"
        assert ran.sql == [("INSERT INTO …", ("o-1", "ada", 12))]
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Optional
from uuid import UUID

from . import ConstraintError, Message, OutboxError, Trace, _micros, _outcome


@dataclass
class Run:
    """What the handler said, and what it asked for."""

    #: `done`, `ignored`, `retry` or `reject`.
    outcome: str
    #: The reason, where there is one.
    reason: Optional[str]
    #: Every statement with its parameters, in order, also of a run that failed.
    sql: list[tuple[str, tuple]]
    #: The messages that leave: `target`, `body`, …; empty after a failure.
    outbox: list[dict]
    #: The answer's body; `None` after a failure.
    reply: Optional[bytes]
    #: The consumer's state; after a failure, as it was before.
    state: dict[str, bytes]
    log: list[tuple[str, str]]

    def sent(self, number: int = 0) -> Any:
        """The body of an outgoing message, read as JSON."""
        return json.loads(self.outbox[number]["body"])


@dataclass
class _Double:
    key: bytes
    attempt: int
    now: datetime
    config: dict
    rows: dict
    violates: dict
    targets: Optional[list]
    reply_to: Optional[str]
    trace: Optional[Trace]
    state: dict
    statements: list = field(default_factory=list)
    sent: list = field(default_factory=list)
    answer: Optional[bytes] = None
    lines: list = field(default_factory=list)
    refused: Optional[ConstraintError] = None
    ids: int = 0

    def _run(self, statement: str, parameters: tuple) -> None:
        self.statements.append((statement, parameters))
        for part, kind in self.violates.items():
            if part in statement:
                raise ConstraintError(kind, "test", "test", f"a {kind} constraint, as the test says")

    def query(self, statement, parameters):
        self._run(statement, parameters)
        for part, rows in self.rows.items():
            if part in statement:
                columns = list(rows[0]) if rows else []
                return columns, [[row[column] for column in columns] for row in rows]
        return [], []

    def execute(self, statement, parameters):
        self._run(statement, parameters)
        return 1

    def defer(self, statement, parameters):
        try:
            self._run(statement, parameters)
        except ConstraintError as refused:
            # Told after the handler, as in the host.
            self.refused = self.refused or refused

    def state_get(self, key):
        return self.state.get(key)

    def state_put(self, key, value):
        self.state[key] = (value, self._version(key) + 1)

    def state_put_if(self, key, value, version):
        if (self._version(key) or None) != version:
            return False
        self.state_put(key, value)
        return True

    def state_delete(self, key):
        self.state.pop(key, None)

    def _version(self, key):
        return self.state[key][1] if key in self.state else 0

    def publish(self, message):
        if self.targets is not None and message["target"] not in self.targets:
            raise OutboxError("unknown-target", f"there is no target {message['target']}")
        self.sent.append(message)
        return f"message-{len(self.sent)}"

    def reply(self, body, content_type):
        if self.reply_to is None:
            raise OutboxError("no-reply-to", "the message has no reply_to")
        self.answer = body

    def context(self, name, *arguments):
        if name == "config":
            return self.config.get(*arguments)
        if name == "new_id":
            self.ids += 1
            return str(UUID(int=self.ids))
        return {
            "consumer": "test", "key": self.key, "attempt": self.attempt, "redelivered": False,
            "now": _micros(self.now), "dialect": "postgres", "trace": self.trace,
        }[name]

    def log(self, level, message, fields):
        self.lines.append((level, message))


def run(
    handle: Any,
    body: Any,
    *,
    headers: Optional[dict] = None,
    properties: Optional[dict] = None,
    routing_key: str = "",
    key: bytes = b"test",
    attempt: int = 1,
    now: datetime = datetime(2026, 1, 1, tzinfo=timezone.utc),
    config: Optional[dict] = None,
    rows: Optional[dict] = None,
    violates: Optional[dict] = None,
    targets: Optional[list] = None,
    state: Optional[dict] = None,
    trace: Optional[Trace] = None,
) -> Run:
    """Runs a handler on one message. A `body` that is not `bytes` is sent as JSON.

    `rows` answers queries whose statement contains a part: `{"FROM t_users": [{"name": "ada"}]}`.
    `violates` lets a constraint refuse statements: `{"INSERT INTO t_points": "unique"}`.
    `targets` are the targets there are; every name is one when it is left out.
    An exception that the handler does not foresee is the test's to see.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    properties = properties or {}
    before = {name: (value, 1) for name, value in (state or {}).items()}
    double = _Double(
        key=key, attempt=attempt, now=now, config=config or {}, rows=rows or {},
        violates=violates or {}, targets=targets, reply_to=properties.get("reply_to"), trace=trace,
        state=dict(before),
    )
    message = Message(content, "", routing_key, properties, headers or {})

    def handled(message: Message) -> Any:
        answer = handle(message)
        if double.refused is not None:
            raise double.refused
        return answer

    outcome, detail = _outcome(handled, double, message)
    kept = outcome in ("done", "ignored")
    return Run(
        outcome=outcome,
        reason=detail[0] if outcome == "retry" else detail,
        sql=double.statements,
        outbox=double.sent if kept else [],
        reply=double.answer if kept else None,
        state={name: entry[0] for name, entry in (double.state if kept else before).items()},
        log=double.lines,
    )
