/**
 * Runs a handler in Node, without WebAssembly and without a database.
 *
 *     import { run } from './hapax-testing.js';
 *     const { handle } = await import('./handler.js');
 *
 *     test('an order is credited', () => {
 *       const ran = run(handle, { order_id: 'o-1', amount_cents: 1299 });
 *       assert.equal(ran.outcome, 'done');
 *     });
 *
 * Import this file first: it stands in for the imports of the component.
 */

import { register } from 'node:module';

const FUNCTIONS = {
  context: ['attempt', 'config', 'consumer', 'dialect', 'key', 'newId', 'now', 'redelivered', 'trace'],
  log: ['write'],
  outbox: ['publish', 'reply'],
  sql: ['defer', 'execute', 'query'],
  state: ['get', 'put', 'putIf', 'delete'],
};

const hooks = `
  const FUNCTIONS = ${JSON.stringify(FUNCTIONS)};
  export async function resolve(specifier, context, next) {
    if (!specifier.startsWith('hapax:plugin/')) return next(specifier, context);
    return { url: specifier, shortCircuit: true };
  }
  export async function load(url, context, next) {
    if (!url.startsWith('hapax:plugin/')) return next(url, context);
    const name = url.slice('hapax:plugin/'.length).split('@')[0];
    const source = FUNCTIONS[name]
      .map((one, at) => \`const f\${at} = (...all) => globalThis.hapaxDouble.\${name}.\${one}(...all); export { f\${at} as \${one} };\`)
      .join('\\n');
    return { format: 'module', source, shortCircuit: true };
  }
`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);

const plain = ({ tag, val }) => {
  if (tag === 'null') return null;
  return tag === 's64' && Number.isSafeInteger(Number(val)) ? Number(val) : val;
};

function wire(value) {
  if (value === null || value === undefined) return { tag: 'null' };
  if (typeof value === 'boolean') return { tag: 'bool', val: value };
  if (Number.isSafeInteger(value)) return { tag: 's64', val: BigInt(value) };
  if (typeof value === 'number') return { tag: 'f64', val: value };
  return typeof value === 'string'
    ? { tag: 'text', val: value }
    : { tag: 'json', val: JSON.stringify(value) };
}

/**
 * Runs a handler on one message. A `body` that is no `Uint8Array` is sent as JSON.
 *
 * `rows` answers queries whose statement contains a part: `{ 'FROM t_users': [{ name: 'ada' }] }`.
 * `violates` lets a constraint refuse statements: `{ 'INSERT INTO t_points': 'unique' }`.
 * `targets` are the targets there are; every name is one when it is left out.
 *
 * Returns `outcome` (`done`, `ignored`, `retry`, `reject`), `reason`, `sql` (statements with their
 * parameters, also of a run that failed), `outbox`, `reply`, `state` and `log`.
 */
export function run(handle, body, options = {}) {
  const {
    key = 'test', attempt = 1, now = new Date('2026-01-01T00:00:00Z'), config = {}, rows = {},
    violates = {}, targets, headers = {}, properties = {}, routingKey = '', state = {}, trace,
  } = options;
  const encode = (text) => new TextEncoder().encode(text);
  const content = body instanceof Uint8Array ? body : encode(JSON.stringify(body));
  const statements = [];
  const sent = [];
  const lines = [];
  let reply;
  let ids = 0;
  let refused;
  const before = new Map(Object.entries(state).map(([name, value]) => [name, { value, version: 1n }]));
  const kept = new Map(before);
  const fail = (payload) => {
    throw Object.assign(new Error(payload.message), { payload });
  };
  const statement = (text, parameters) => {
    statements.push([text, parameters.map(plain)]);
    const hit = Object.entries(violates).find(([part]) => text.includes(part));
    if (!hit) return undefined;
    const message = `a ${hit[1]} constraint, as the test says`;
    return { kind: hit[1], code: 'test', constraint: 'test', message };
  };
  const refuse = (violation) => violation && fail(violation);
  globalThis.hapaxDouble = {
    context: {
      attempt: () => attempt,
      config: (name) => config[name],
      consumer: () => 'test',
      dialect: () => 'postgres',
      key: () => encode(key),
      newId: () => `00000000-0000-0000-0000-${String((ids += 1)).padStart(12, '0')}`,
      now: () => BigInt(now.getTime()) * 1000n,
      redelivered: () => false,
      trace: () => trace,
    },
    log: { write: (level, message) => lines.push([level, message]) },
    outbox: {
      publish(message) {
        if (targets && !targets.includes(message.target)) {
          fail({ kind: 'unknown-target', message: `there is no target ${message.target}` });
        }
        sent.push({ ...message, json: () => JSON.parse(new TextDecoder().decode(message.body)) });
        return `message-${sent.length}`;
      },
      reply(answer) {
        if (properties.replyTo === undefined) {
          fail({ kind: 'no-reply-to', message: 'the message has no replyTo' });
        }
        reply = answer;
      },
    },
    sql: {
      defer(text, parameters) {
        // Told after the handler, as in the host.
        refused ??= statement(text, parameters);
      },
      execute(text, parameters) {
        refuse(statement(text, parameters));
        return 1n;
      },
      query(text, parameters) {
        refuse(statement(text, parameters));
        const found = Object.entries(rows).find(([part]) => text.includes(part))?.[1] ?? [];
        const columns = Object.keys(found[0] ?? {});
        return {
          columns: columns.map((name) => ({ name, type: 'test' })),
          rows: found.map((row) => columns.map((column) => wire(row[column]))),
        };
      },
    },
    state: {
      get: (name) => kept.get(name),
      put: (name, value) => kept.set(name, { value, version: (kept.get(name)?.version ?? 0n) + 1n }),
      putIf(name, value, version) {
        if (kept.get(name)?.version !== version) fail({ current: kept.get(name)?.version });
        this.put(name, value);
      },
      delete: (name) => kept.delete(name),
    },
  };
  const envelope = {
    exchange: '',
    routingKey,
    properties,
    headers: Object.entries(headers).map(([name, value]) => ({ name, value: wire(value) })),
    body: content,
  };
  let outcome;
  try {
    outcome = handle(envelope);
    if (refused) {
      const later = refused.kind === 'foreign-key';
      const reason = `${refused.kind}: ${refused.message}`;
      outcome = later ? { tag: 'retry', val: { reason } } : { tag: 'reject', val: reason };
    }
  } catch (error) {
    if (error?.payload === undefined) throw error;
    outcome = error.payload;
  } finally {
    delete globalThis.hapaxDouble;
  }
  const done = outcome.tag === 'done' || outcome.tag === 'ignored';
  const values = [...(done ? kept : before)].map(([name, entry]) => [name, entry.value]);
  return {
    outcome: outcome.tag,
    reason: outcome.val?.reason ?? outcome.val,
    sql: statements,
    outbox: done ? sent : [],
    reply: done ? reply : undefined,
    state: Object.fromEntries(values),
    log: lines,
  };
}
