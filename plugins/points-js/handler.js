// Credits points for a paid order, and tells whoever listens.

import { handler, outbox, Reject, sql } from './hapax.js';

export const handle = handler((message) => {
  const { order_id, user_id, amount_cents } = message.json() ?? {};
  if (typeof order_id !== 'string' || typeof user_id !== 'string' || !Number.isInteger(amount_cents)) {
    throw new Reject('this is no order');
  }
  const points = Math.trunc(amount_cents / 100);
  // Deferred, because nothing here reads it back: Hapax writes the rows of many messages with one
  // statement. An order that is there already still fails the message.
  sql.defer(
    'INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)',
    order_id, user_id, points,
  );
  outbox.publish('points-credited', { order_id, points });
});
