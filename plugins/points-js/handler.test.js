// Runs the handler in Node, and every sample message of plugins/points through it.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';

import { run } from './hapax-testing.js';

const { handle } = await import('./handler.js');
const { ConstraintError, context, handler, ignored, json, outbox, Retry, sql, state } = await import(
  './hapax.js'
);

const ORDER = { order_id: 'o-1', user_id: 'ada', amount_cents: 1299 };
const bytes = (text) => new TextEncoder().encode(text);

test('a paid order credits a point for every 100 cents', () => {
  const ran = run(handle, ORDER);
  assert.equal(ran.outcome, 'done');
  assert.deepEqual(ran.sql[0][1], ['o-1', 'ada', 12]);
  assert.deepEqual(ran.outbox[0].json(), { order_id: 'o-1', points: 12 });
});

test('an order that is credited already is rejected and publishes nothing', () => {
  const ran = run(handle, ORDER, { violates: { 'INSERT INTO t_points': 'unique' } });
  assert.deepEqual([ran.outcome, ran.outbox], ['reject', []]);
});

test('a body that is no order is rejected', () => {
  for (const body of [bytes('twelve'), new Uint8Array([255]), { order_id: 'o-1' }, null]) {
    const ran = run(handle, body);
    assert.deepEqual([ran.outcome, ran.sql], ['reject', []]);
  }
});

test('every sample message is handled', async () => {
  const samples = await readFile(new URL('../points/messages.jsonl', import.meta.url), 'utf8');
  for (const line of samples.trim().split('\n')) {
    assert.equal(run(handle, JSON.parse(line).body).outcome, 'done', line);
  }
});

test('what is thrown becomes a verdict', () => {
  const outcome = (body, options) => run(handler(body), {}, options).outcome;
  const insert = () => void sql.execute('INSERT INTO t_orders VALUES ($1)', 1);
  assert.equal(outcome(insert, { violates: { INSERT: 'foreign-key' } }), 'retry');
  assert.equal(outcome(insert, { violates: { INSERT: 'check' } }), 'reject');
  assert.equal(outcome(() => ignored('old')), 'ignored');
  assert.equal(outcome(() => 1), 'reject');
  assert.equal(outcome(() => outbox.publish('nowhere', {}), { targets: ['here'] }), 'retry');
  assert.equal(
    outcome(() => {
      throw new Retry('not yet', { after: 1500 });
    }),
    'retry',
  );
  assert.equal(outcome(() => undefined.nothing), 'retry');
});

test('a constraint can be caught', () => {
  const once = handler(() => {
    try {
      sql.execute('INSERT INTO t_seen VALUES ($1)', 1);
    } catch (error) {
      if (error instanceof ConstraintError) return ignored(error.kind);
      throw error;
    }
  });
  assert.equal(run(once, {}, { violates: { t_seen: 'unique' } }).reason, 'unique');
});

test('rows, state and context are what JavaScript expects', () => {
  const all = handler(() => {
    const row = sql.first('SELECT name, total FROM t_users WHERE id = $1', 7);
    state.put('last', bytes(row.name));
    assert.deepEqual(state.getVersioned('last'), { value: bytes('ada'), version: 2n });
    assert.equal(state.putIf('last', bytes('x'), 7n), false);
    assert.equal(state.putIf('new', bytes('x')), true);
    state.delete('new');
    assert.equal(context.now.toISOString(), '2026-01-01T00:00:00.000Z');
    assert.notEqual(context.newId(), context.newId());
    assert.equal(context.config('rate'), '10');
    sql.defer('INSERT INTO t_log VALUES ($1, $2)', json('text'), null);
    outbox.publish('out', { total: row.total }, { delay: 1000, headers: { n: 1 } });
  });
  const rows = { 'FROM t_users': [{ name: 'ada', total: 3 }] };
  const ran = run(all, {}, { rows, state: { last: bytes('?') }, config: { rate: '10' } });
  assert.equal(ran.outcome, 'done');
  assert.deepEqual(Object.keys(ran.state), ['last']);
  assert.deepEqual(ran.outbox[0].json(), { total: 3 });
});
