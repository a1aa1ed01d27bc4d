"""Runs the handler natively, and every sample message of plugins/points through it."""

import json
import unittest
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

from hapax import ConstraintError, Ignored, Retry, context, outbox, sql, state
from hapax.testing import run

from handler import handle

ORDER = {"order_id": "o-1", "user_id": "ada", "amount_cents": 1299}
SAMPLES = Path(__file__).parent / "../points/messages.jsonl"


class Points(unittest.TestCase):
    def test_a_paid_order_credits_a_point_for_every_100_cents(self):
        ran = run(handle, ORDER)
        self.assertEqual(ran.outcome, "done")
        self.assertEqual(ran.sql[0][1], ("o-1", "ada", 12))
        self.assertEqual(ran.sent(), {"order_id": "o-1", "points": 12})

    def test_an_order_that_is_credited_already_is_rejected_and_publishes_nothing(self):
        ran = run(handle, ORDER, violates={"INSERT INTO t_points": "unique"})
        self.assertEqual((ran.outcome, ran.outbox), ("reject", []))

    def test_a_body_that_is_no_order_is_rejected(self):
        for body in [b"twelve", b"\xff", {"order_id": "o-1"}, [1]]:
            ran = run(handle, body)
            self.assertEqual((ran.outcome, ran.sql), ("reject", []), body)

    def test_every_sample_message_is_handled(self):
        for line in SAMPLES.read_text().splitlines():
            self.assertEqual(run(handle, json.loads(line)["body"]).outcome, "done", line)


class Sdk(unittest.TestCase):
    """What the wrapper makes of Python's ways."""

    def outcome(self, handle, **options):
        ran = run(handle, {}, **options)
        return ran.outcome, ran.reason

    def test_exceptions_become_verdicts(self):
        def late(message):
            raise Retry("not yet", after=1.5)

        self.assertEqual(self.outcome(late), ("retry", "not yet"))
        self.assertEqual(self.outcome(lambda message: Ignored("old")), ("ignored", "old"))

        def insert(message):
            sql.execute("INSERT INTO t_orders VALUES ($1)", 1)

        violates = lambda kind: {"INSERT": kind}
        self.assertEqual(self.outcome(insert, violates=violates("foreign-key"))[0], "retry")
        self.assertEqual(self.outcome(insert, violates=violates("check"))[0], "reject")

        def unknown(message):
            outbox.publish("nowhere", b"")

        self.assertEqual(self.outcome(unknown, targets=["here"])[0], "retry")
        with self.assertRaises(TypeError):
            run(lambda message: 1, {})

    def test_a_constraint_can_be_caught(self):
        def once(message):
            try:
                sql.execute("INSERT INTO t_seen VALUES ($1)", 1)
            except ConstraintError as error:
                return Ignored(error.kind)

        self.assertEqual(self.outcome(once, violates={"t_seen": "unique"}), ("ignored", "unique"))

    def test_rows_state_and_context_are_pythons(self):
        def all_of_it(message):
            row = sql.first("SELECT name, paid FROM t_users WHERE id = $1", 7)
            state.put("last", row["name"].encode())
            assert state.get_versioned("last") == (b"ada", 2)
            assert not state.put_if("last", b"x", 7)
            assert state.put_if("new", b"x", None)
            state.delete("new")
            assert context.now == datetime(2026, 1, 1, tzinfo=timezone.utc)
            assert context.new_id() != context.new_id()
            assert (context.config("rate"), context.config("none")) == ("10", None)
            outbox.publish("out", {"paid": str(row["paid"])}, delay=1, headers={"n": 1})

        rows = {"FROM t_users": [{"name": "ada", "paid": Decimal("1.50")}]}
        ran = run(all_of_it, {}, rows=rows, state={"last": b"?"}, config={"rate": "10"})
        self.assertEqual(ran.outcome, "done")
        self.assertEqual(ran.state, {"last": b"ada"})
        self.assertEqual(ran.sent(), {"paid": "1.50"})


if __name__ == "__main__":
    unittest.main()
