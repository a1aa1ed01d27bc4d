"""The way from `hapax` to the component's imports, and from its export to a handler.

`hapax build` makes the module that uses it; a handler does not need to know it.
"""

from __future__ import annotations

import json
import sys
import traceback
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Optional
from uuid import UUID

import wit_world
from componentize_py_types import Err
from wit_world.imports import context, log, outbox, sql, state, types

from . import _EPOCH, ConstraintError, Json, Message, OutboxError, Trace, _micros, _outcome

_PROPERTIES = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)


def component(handle: Any) -> type:
    """The class that the component exports."""

    class WitWorld(wit_world.WitWorld):
        def handle(self, message: types.Envelope) -> types.Outcome:
            try:
                kind, detail = _outcome(handle, _Imports(), _message(message))
            except Exception as error:
                # Nothing that the handler foresaw: whoever looks at the message needs to know where.
                traceback.print_exc(file=sys.stderr)
                reason = traceback.format_exception_only(error)[-1].strip()
                raise Err(types.Failure_Retry(types.Retry(reason, None))) from None
            if kind == "retry":
                raise Err(types.Failure_Retry(types.Retry(*detail)))
            if kind == "reject":
                raise Err(types.Failure_Reject(detail))
            return types.Outcome_Done() if kind == "done" else types.Outcome_Ignored(detail)

    return WitWorld


def _message(envelope: types.Envelope) -> Message:
    properties = {name: getattr(envelope.properties, name) for name in _PROPERTIES}
    return Message(
        body=envelope.body,
        exchange=envelope.exchange,
        routing_key=envelope.routing_key,
        properties={name: value for name, value in properties.items() if value is not None},
        headers={header.name: _from_header(header.value) for header in envelope.headers},
    )


def _from_header(value: types.HeaderValue) -> Any:
    if isinstance(value, types.HeaderValue_Null):
        return None
    if isinstance(value, types.HeaderValue_Decimal):
        return Decimal(value.value)
    if isinstance(value, types.HeaderValue_Timestamp):
        return _time(value.value)
    if isinstance(value, types.HeaderValue_Json):
        return json.loads(value.value)
    return value.value


def _to_header(value: Any) -> types.HeaderValue:
    if value is None:
        return types.HeaderValue_Null()
    if isinstance(value, bool):
        return types.HeaderValue_Bool(value)
    if isinstance(value, int):
        return types.HeaderValue_S64(value)
    if isinstance(value, float):
        return types.HeaderValue_F64(value)
    if isinstance(value, bytes):
        return types.HeaderValue_Bytes(value)
    if isinstance(value, Decimal):
        return types.HeaderValue_Decimal(format(value, "f"))
    if isinstance(value, datetime):
        return types.HeaderValue_Timestamp(_micros(value))
    if isinstance(value, (dict, list)):
        return types.HeaderValue_Json(json.dumps(value))
    return types.HeaderValue_Text(str(value))


def _to_value(value: Any) -> sql.Value:
    if value is None:
        return sql.Value_Null()
    if isinstance(value, bool):
        return sql.Value_Bool(value)
    if isinstance(value, int):
        return sql.Value_S64(value)
    if isinstance(value, float):
        return sql.Value_F64(value)
    if isinstance(value, str):
        return sql.Value_Text(value)
    if isinstance(value, (bytes, bytearray)):
        return sql.Value_Bytes(bytes(value))
    if isinstance(value, Decimal):
        return sql.Value_Decimal(format(value, "f"))
    if isinstance(value, datetime):
        return sql.Value_Timestamp(_micros(value))
    if isinstance(value, UUID):
        return sql.Value_Uuid(str(value))
    if isinstance(value, Json):
        return sql.Value_Json(json.dumps(value.value))
    if isinstance(value, (dict, list)):
        return sql.Value_Json(json.dumps(value))
    raise TypeError(f"no SQL value can be made of a {type(value).__name__}")


def _from_value(value: sql.Value) -> Any:
    if isinstance(value, sql.Value_Null):
        return None
    if isinstance(value, sql.Value_Decimal):
        return Decimal(value.value)
    if isinstance(value, sql.Value_Timestamp):
        return _time(value.value)
    if isinstance(value, sql.Value_Uuid):
        return UUID(value.value)
    if isinstance(value, sql.Value_Json):
        return json.loads(value.value)
    if isinstance(value, sql.Value_Other):
        return value.value.text
    return value.value


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _kind(error: Any) -> str:
    return error.kind.name.lower().replace("_", "-")


def _sql(call: Any, statement: str, parameters: tuple) -> Any:
    try:
        return call(statement, [_to_value(value) for value in parameters])
    except Err as refused:
        error = refused.value
        raise ConstraintError(_kind(error), error.code, error.constraint, error.message) from None


class _Imports:
    """`hapax.Host` over the component's imports."""

    def query(self, statement: str, parameters: tuple) -> tuple[list[str], list[list]]:
        answer = _sql(sql.query, statement, parameters)
        columns = [column.name for column in answer.columns]
        return columns, [[_from_value(value) for value in row] for row in answer.rows]

    def execute(self, statement: str, parameters: tuple) -> int:
        return _sql(sql.execute, statement, parameters)

    def defer(self, statement: str, parameters: tuple) -> None:
        sql.defer(statement, [_to_value(value) for value in parameters])

    def state_get(self, key: str) -> Optional[tuple[bytes, int]]:
        entry = state.get(key)
        return None if entry is None else (entry.value, entry.version)

    def state_put(self, key: str, value: bytes) -> None:
        state.put(key, value)

    def state_put_if(self, key: str, value: bytes, version: Optional[int]) -> bool:
        try:
            state.put_if(key, value, version)
        except Err:
            return False
        return True

    def state_delete(self, key: str) -> None:
        state.delete(key)

    def publish(self, message: dict) -> str:
        headers = [types.Header(name, _to_header(value)) for name, value in message["headers"].items()]
        delay = message["delay"]
        try:
            return outbox.publish(outbox.Message(
                target=message["target"],
                routing_key=message["routing_key"],
                body=message["body"],
                content_type=message["content_type"],
                headers=headers,
                ordering_key=message["ordering_key"],
                delay=None if delay is None else max(0, round(delay * 1000)),
            ))
        except Err as refused:
            raise OutboxError(_kind(refused.value), refused.value.message) from None

    def reply(self, body: bytes, content_type: Optional[str]) -> None:
        try:
            outbox.reply(body, content_type)
        except Err as refused:
            raise OutboxError(_kind(refused.value), refused.value.message) from None

    def context(self, name: str, *arguments: str) -> Any:
        answer = getattr(context, name)(*arguments)
        if name == "dialect":
            return answer.name.lower()
        if name == "trace" and answer is not None:
            return Trace(answer.trace_id, answer.span_id, answer.sampled)
        return answer

    def log(self, level: str, message: str, fields: list[tuple[str, str]]) -> None:
        log.write(log.Level[level.upper()], message, fields)
