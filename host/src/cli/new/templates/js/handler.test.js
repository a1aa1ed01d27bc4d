// Runs the handler in Node: `npm test`.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { run } from './hapax-testing.js';

const { handle } = await import('./handler.js');

const ORDER = { order_id: 'o-1', user_id: 'ada', amount_cents: 1299 };

test('a paid order credits a point for every 100 cents', () => {
  const ran = run(handle, ORDER);
  assert.equal(ran.outcome, 'done');
  assert.deepEqual(ran.sql[0][1], ['o-1', 'ada', 12]);
  assert.deepEqual(ran.outbox[0].json(), { order_id: 'o-1', points: 12 });
});

test('an order that is credited already is rejected', () => {
  const ran = run(handle, ORDER, { violates: { 'INSERT INTO t_points': 'unique' } });
  assert.equal(ran.outcome, 'reject');
  assert.deepEqual(ran.outbox, []);
});

test('a body that is no order is rejected', () => {
  for (const body of [new TextEncoder().encode('twelve'), { order_id: 'o-1' }, null]) {
    assert.equal(run(handle, body).outcome, 'reject');
  }
});
