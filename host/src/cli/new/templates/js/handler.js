// Credits points for a paid order, and tells whoever listens.

import { handler, outbox, Reject, sql } from './hapax.js';

export const handle = handler((message) => {
  const order = message.json();
  const { order_id, user_id, amount_cents } = order ?? {};
  if (typeof order_id !== 'string' || typeof user_id !== 'string' || !Number.isInteger(amount_cents)) {
    throw new Reject('this is no order');
  }
  const points = Math.trunc(amount_cents / 100);
  sql.execute(
    'INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)',
    order_id, user_id, points,
  );
  outbox.publish('points-credited', { order_id, points });
});
