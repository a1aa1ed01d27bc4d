"""Uses all of the world, and rejects the message when something is not what was promised."""

from datetime import datetime, timezone
from decimal import Decimal
from uuid import UUID

from hapax import ConstraintError, Ignored, Reject, Retry, context, log, outbox, sql, state

VALUES = {
    "flag": True,
    "whole": 9007199254740993,
    "part": 0.5,
    "exact": Decimal("-12.50"),
    "words": "naïve",
    "raw": b"\x00\xff",
    "moment": datetime(2026, 1, 2, 3, 4, 5, 678000, timezone.utc),
    "number": UUID("67e55044-10b1-426f-9247-bb680e5fe0c8"),
    "tree": {"a": [1, None]},
    "nothing": None,
}


def handle(message):
    order = message.json()
    if order["wish"] == "unforeseen":
        return unforeseen({})
    if order["wish"] == "ignored":
        return Ignored("nothing to do")
    if context.attempt == 1:
        # It leaves nothing behind.
        state.put("first", b"1")
        raise Retry("not at once", after=0.02)
    expect("state of an attempt that failed", state.get("first"), None)
    values(order["order_id"])
    states()
    surroundings(message, order["order_id"])
    log.info("all is well", wish=order["wish"])
    outbox.reply({"answer": 42})
    outbox.publish("out", {"attempt": context.attempt}, headers={"n": 1, "name": "ada"})


def unforeseen(order):
    return order["is not there"]


def expect(what, found, wanted):
    if found != wanted or type(found) is not type(wanted):
        raise Reject(f"{what}: {found!r} and not {wanted!r}")


def values(id):
    names = ", ".join(VALUES)
    places = ", ".join(f"${number}" for number in range(2, len(VALUES) + 2))
    insert = f"INSERT INTO t_values (id, {names}) VALUES ($1, {places})"
    expect("rows that were written", sql.execute(insert, id, *VALUES.values()), 1)
    row = sql.first(f"SELECT {names} FROM t_values WHERE id = $1", id)
    for name, wanted in VALUES.items():
        expect(name, row[name], wanted)
    changed = sql.query("UPDATE t_values SET words = 'new' WHERE id = $1 RETURNING words", id)
    expect("what a write returned", changed, [{"words": "new"}])
    expect("no row", sql.first("SELECT id FROM t_values WHERE id = $1", "none"), None)
    try:
        sql.execute("INSERT INTO t_values (id) VALUES ($1)", id)
    except ConstraintError as error:
        expect("the kind of the constraint", error.kind, "unique")
        expect("its name", error.constraint, "t_values_pkey")
    else:
        raise Reject("a second row of one key")


def states():
    state.put("count", b"1")
    expect("a value of the state", state.get("count"), b"1")
    value, version = state.get_versioned("count")
    expect("a versioned value", value, b"1")
    expect("another version", state.put_if("count", b"x", version + 7), False)
    expect("this version", state.put_if("count", b"2", version), True)
    expect("a new key", state.put_if("new", b"x", None), True)
    state.delete("new")
    expect("a key that was removed", state.get("new"), None)


def surroundings(message, id):
    expect("consumer", context.consumer, "all-of-it")
    expect("key", context.key, id.encode())
    expect("attempt", context.attempt, 2)
    expect("redelivered", context.redelivered, False)
    expect("dialect", context.dialect, "postgres")
    expect("config", (context.config("rate"), context.config("none")), ("10", None))
    if context.now != context.now or context.now < datetime(2026, 1, 1, tzinfo=timezone.utc):
        raise Reject(f"now: {context.now!r}")
    if len(UUID(context.new_id()).bytes) != 16 or context.new_id() == context.new_id():
        raise Reject("ids that are none")
    expect("trace", context.trace.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736")
    expect("its span", (context.trace.span_id, context.trace.sampled), ("00f067aa0ba902b7", True))
    expect("a header", message.headers["tenant"], "north")
    expect("a property", message.properties["correlation_id"], "c-1")
