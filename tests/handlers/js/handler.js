// Uses all of the world, and rejects the message when something is not what was promised.

import {
  ConstraintError, context, decimal, handler, ignored, log, outbox, Reject, Retry, sql, state, uuid,
} from './hapax.js';

const bytes = (text) => new TextEncoder().encode(text);

// What is sent, and what comes back where that is not the same.
const VALUES = {
  flag: [true],
  whole: [9007199254740993n],
  part: [0.5],
  exact: [decimal('-12.50'), '-12.50'],
  words: ['naïve'],
  raw: [new Uint8Array([0, 255])],
  moment: [new Date('2026-01-02T03:04:05.678Z')],
  number: [uuid('67e55044-10b1-426f-9247-bb680e5fe0c8'), '67e55044-10b1-426f-9247-bb680e5fe0c8'],
  tree: [{ a: [1, null] }],
  nothing: [null],
};

export const handle = handler((message) => {
  const order = message.json();
  if (order.wish === 'unforeseen') return unforeseen({});
  if (order.wish === 'ignored') return ignored('nothing to do');
  if (context.attempt === 1) {
    // It leaves nothing behind.
    state.put('first', bytes('1'));
    throw new Retry('not at once', { after: 20 });
  }
  expect('state of an attempt that failed', state.get('first'), undefined);
  values(order.order_id);
  states();
  surroundings(message, order.order_id);
  log.info('all is well', { wish: order.wish });
  outbox.reply({ answer: 42 });
  outbox.publish('out', { attempt: context.attempt }, { headers: { n: 1, name: 'ada' } });
});

function unforeseen(order) {
  return order.isNotThere.atAll;
}

function show(value) {
  if (typeof value === 'bigint') return `${value}n`;
  if (value instanceof Uint8Array) return `bytes ${Array.from(value)}`;
  if (value instanceof Date) return `date ${value.toISOString()}`;
  return value === undefined ? 'undefined' : JSON.stringify(value);
}

function expect(what, found, wanted) {
  if (show(found) !== show(wanted)) {
    throw new Reject(`${what}: ${show(found)} and not ${show(wanted)}`);
  }
}

function values(id) {
  const names = Object.keys(VALUES);
  const places = names.map((_, at) => `$${at + 2}`).join(', ');
  const insert = `INSERT INTO t_values (id, ${names.join(', ')}) VALUES ($1, ${places})`;
  const sent = names.map((name) => VALUES[name][0]);
  expect('rows that were written', sql.execute(insert, id, ...sent), 1);
  const row = sql.first(`SELECT ${names.join(', ')} FROM t_values WHERE id = $1`, id);
  for (const name of names) expect(name, row[name], VALUES[name].at(-1));
  const changed = sql.query("UPDATE t_values SET words = 'new' WHERE id = $1 RETURNING words", id);
  expect('what a write returned', changed, [{ words: 'new' }]);
  expect('no row', sql.first('SELECT id FROM t_values WHERE id = $1', 'none'), undefined);
  let refused;
  try {
    sql.execute('INSERT INTO t_values (id) VALUES ($1)', id);
  } catch (error) {
    if (!(error instanceof ConstraintError)) throw error;
    refused = error;
  }
  expect('the kind of the constraint', refused?.kind, 'unique');
  expect('its name', refused.constraint, 't_values_pkey');
}

function states() {
  state.put('count', bytes('1'));
  expect('a value of the state', state.get('count'), bytes('1'));
  const { value, version } = state.getVersioned('count');
  expect('a versioned value', value, bytes('1'));
  expect('another version', state.putIf('count', bytes('x'), version + 7n), false);
  expect('this version', state.putIf('count', bytes('2'), version), true);
  expect('a new key', state.putIf('new', bytes('x'), undefined), true);
  state.delete('new');
  expect('a key that was removed', state.get('new'), undefined);
}

function surroundings(message, id) {
  expect('consumer', context.consumer, 'all-of-it');
  expect('key', context.key, bytes(id));
  expect('attempt', context.attempt, 2);
  expect('redelivered', context.redelivered, false);
  expect('dialect', context.dialect, 'postgres');
  expect('config', [context.config('rate'), context.config('none') ?? null], ['10', null]);
  if (!(context.now >= new Date('2026-01-01')) || context.now - context.now !== 0) {
    throw new Reject(`now: ${context.now}`);
  }
  if (context.newId().length !== 36 || context.newId() === context.newId()) {
    throw new Reject('ids that are none');
  }
  expect('trace', context.trace, {
    traceId: '4bf92f3577b34da6a3ce929d0e0e4736', spanId: '00f067aa0ba902b7', sampled: true,
  });
  expect('a header', message.headers.tenant, 'north');
  expect('a property', message.properties.correlationId, 'c-1');
}
