"""Credits points for a paid order, and tells whoever listens."""

from hapax import Reject, outbox, sql


def handle(message):
    order = message.json()
    try:
        order_id, user_id = order["order_id"], order["user_id"]
        points = order["amount_cents"] // 100
    except (KeyError, TypeError) as error:
        raise Reject(f"this is no order: {error!r}") from error
    sql.execute(
        "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)",
        order_id, user_id, points,
    )
    outbox.publish("points-credited", {"order_id": order_id, "points": points})
