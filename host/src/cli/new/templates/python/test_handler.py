"""Runs the handler natively: `python3 -m unittest`."""

import unittest

from hapax.testing import run

from handler import handle

ORDER = {"order_id": "o-1", "user_id": "ada", "amount_cents": 1299}


class Handler(unittest.TestCase):
    def test_a_paid_order_credits_a_point_for_every_100_cents(self):
        ran = run(handle, ORDER)
        self.assertEqual(ran.outcome, "done")
        self.assertEqual(ran.sql[0][1], ("o-1", "ada", 12))
        self.assertEqual(ran.sent(), {"order_id": "o-1", "points": 12})

    def test_an_order_that_is_credited_already_is_rejected(self):
        ran = run(handle, ORDER, violates={"INSERT INTO t_points": "unique"})
        self.assertEqual(ran.outcome, "reject")
        self.assertEqual(ran.outbox, [])

    def test_a_body_that_is_no_order_is_rejected(self):
        for body in [b"twelve", {"order_id": "o-1"}, [1]]:
            self.assertEqual(run(handle, body).outcome, "reject", body)


if __name__ == "__main__":
    unittest.main()
