/**
 * Write Hapax message handlers in JavaScript.
 *
 * What a handler asks for (SQL, state, outgoing messages) commits together with the record that the
 * message was handled, in one database transaction, or not at all.
 *
 *     import { handler, outbox, sql } from './hapax.js';
 *
 *     export const handle = handler((message) => {
 *       const order = message.json();
 *       sql.defer('INSERT INTO t_points (order_id) VALUES ($1)', order.order_id);
 *       outbox.publish('points-credited', { order_id: order.order_id });
 *     });
 *
 * Returning means done; `return ignored('why')` means done, and there was nothing to do. What is thrown
 * undoes everything that the message did:
 *
 * | thrown                                      | becomes                                         |
 * |---------------------------------------------|-------------------------------------------------|
 * | `Reject`, a body that is no JSON            | parked at once                                  |
 * | `ConstraintError` of the kind `foreign-key` | retried: the parent's message is late           |
 * | `ConstraintError` of any other kind         | parked at once                                  |
 * | `Retry`                                     | retried, not before its `after`                 |
 * | `OutboxError`                               | retried: a target can be added meanwhile        |
 * | every other error                           | retried; its stack is kept with the message     |
 *
 * `hapax-testing.js` runs a handler in Node, without WebAssembly and without a database.
 */

import * as hostContext from 'hapax:plugin/context@0.1.0';
import * as hostLog from 'hapax:plugin/log@0.1.0';
import * as hostOutbox from 'hapax:plugin/outbox@0.1.0';
import * as hostSql from 'hapax:plugin/sql@0.1.0';
import * as hostState from 'hapax:plugin/state@0.1.0';

/** The message will never succeed: it is parked, where a person sees the reason. */
export class Reject extends Error {}

/** The message may succeed later; `after` is in milliseconds from now. */
export class Retry extends Error {
  constructor(reason, { after } = {}) {
    super(reason);
    this.after = after;
  }
}

/** A constraint has refused a statement. The statement had no effect, and the transaction goes on. */
export class ConstraintError extends Error {
  constructor({ kind, code, constraint, message }) {
    super(message);
    /** `unique`, `foreign-key`, `not-null`, `check`, `exclusion` or `other`. */
    this.kind = kind;
    this.code = code;
    this.constraint = constraint;
  }
}

/** A message cannot be sent: `kind` is `unknown-target`, `invalid` or `no-reply-to`. */
export class OutboxError extends Error {
  constructor({ kind, message }) {
    super(message);
    this.kind = kind;
  }
}

class Ignored {
  constructor(reason) {
    this.reason = String(reason);
  }
}

/** Returned by a handler that had nothing to do. The reason is counted and logged. */
export const ignored = (reason) => new Ignored(reason);

/** What the host gives as bytes is not always an array of this realm, and then `instanceof` denies it. */
const own = (bytes) => (bytes instanceof Uint8Array ? bytes : Uint8Array.from(bytes));

/** One message, as it was first delivered. */
export class Message {
  constructor(envelope) {
    /** @type {Uint8Array} */
    this.body = own(envelope.body);
    this.exchange = envelope.exchange;
    this.routingKey = envelope.routingKey;
    /** AMQP properties that are set: `messageId`, `contentType`, `replyTo`, … */
    this.properties = Object.fromEntries(
      Object.entries(envelope.properties).filter(([, value]) => value !== undefined && value !== null),
    );
    /** Header values by name. */
    this.headers = Object.fromEntries(
      envelope.headers.map(({ name, value }) => [name, fromHost(value)]),
    );
  }

  /** The body as text. A body that is no UTF-8 rejects the message. */
  text() {
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(this.body);
    } catch (error) {
      throw new Reject(`the body is not text: ${error.message}`);
    }
  }

  /** The body as JSON. A body that is none rejects the message. */
  json() {
    const text = this.text();
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Reject(`the body is not JSON: ${error.message}`);
    }
  }
}

/** Makes the component's export of a function that takes a `Message`. */
export function handler(handle) {
  return (envelope) => {
    let answer;
    try {
      answer = handle(new Message(envelope));
    } catch (error) {
      throw { payload: failure(error) };
    }
    if (answer instanceof Ignored) {
      return { tag: 'ignored', val: answer.reason };
    }
    if (answer !== undefined) {
      const text = 'a handler returns nothing or ignored(reason); it must not be async';
      throw { payload: { tag: 'reject', val: text } };
    }
    return { tag: 'done' };
  };
}

function failure(error) {
  const retry = (reason, after) => ({ tag: 'retry', val: { reason, after } });
  if (error instanceof Retry) {
    const after = error.after === undefined ? undefined : BigInt(Math.max(0, Math.round(error.after)));
    return retry(error.message, after);
  }
  if (error instanceof Reject) return { tag: 'reject', val: error.message };
  if (error instanceof ConstraintError) {
    const reason = `${error.kind}: ${error.message}`;
    return error.kind === 'foreign-key' ? retry(reason) : { tag: 'reject', val: reason };
  }
  if (error instanceof OutboxError) return retry(`outbox: ${error.message}`);
  // Nothing that the handler foresaw: whoever looks at the message needs to know where.
  console.error(error?.stack ?? error);
  return retry(String(error));
}

/** A JSON parameter. Objects and arrays are one by themselves; text and numbers need it. */
export const json = (value) => ({ tag: 'json', val: JSON.stringify(value) });
/** An exact decimal, as text: `decimal('-12.50')`. */
export const decimal = (text) => ({ tag: 'decimal', val: String(text) });
/** A UUID, as text. */
export const uuid = (text) => ({ tag: 'uuid', val: String(text) });

const TAGS = new Set(['json', 'decimal', 'uuid']);

function toHost(value) {
  if (value === undefined || value === null) return { tag: 'null' };
  switch (typeof value) {
    case 'boolean':
      return { tag: 'bool', val: value };
    case 'bigint':
      return { tag: 's64', val: value };
    case 'number':
      return Number.isSafeInteger(value)
        ? { tag: 's64', val: BigInt(value) }
        : { tag: 'f64', val: value };
    case 'string':
      return { tag: 'text', val: value };
  }
  if (ArrayBuffer.isView(value)) return { tag: 'bytes', val: value };
  if (value instanceof Date) return { tag: 'timestamp', val: BigInt(value.getTime()) * 1000n };
  if (TAGS.has(value.tag) && typeof value.val === 'string') return value;
  return { tag: 'json', val: JSON.stringify(value) };
}

function fromHost({ tag, val }) {
  switch (tag) {
    case 'null':
      return null;
    case 's64':
      return Number.isSafeInteger(Number(val)) ? Number(val) : val;
    case 'timestamp':
      return new Date(Number(val / 1000n));
    case 'bytes':
      return own(val);
    case 'json':
      return JSON.parse(val);
    case 'other':
      return val.text;
    default:
      return val;
  }
}

function calling(Kind, call) {
  try {
    return call();
  } catch (error) {
    if (error?.payload?.kind !== undefined) throw new Kind(error.payload);
    throw error;
  }
}

/**
 * SQL on the handler's own tables. Values are parameters, written `$1`, `$2`, … on every store: null,
 * booleans, numbers, bigints, strings, `Uint8Array`, `Date`, and objects or arrays for JSON.
 */
export const sql = {
  /** Runs a SELECT, or a write with RETURNING, and returns its rows as objects. */
  query(statement, ...parameters) {
    const { columns, rows } = calling(ConstraintError, () =>
      hostSql.query(statement, parameters.map(toHost)),
    );
    return rows.map((row) =>
      Object.fromEntries(row.map((value, at) => [columns[at].name, fromHost(value)])),
    );
  },
  /** The first row, or undefined. */
  first(statement, ...parameters) {
    return sql.query(statement, ...parameters)[0];
  },
  /** Runs a write now and returns the number of rows it touched. */
  execute(statement, ...parameters) {
    return Number(
      calling(ConstraintError, () => hostSql.execute(statement, parameters.map(toHost))),
    );
  },
  /**
   * Keeps a write for the end of the batch, where equal statements run together: the fastest way when
   * the handler does not need to see the result.
   */
  defer(statement, ...parameters) {
    hostSql.defer(statement, parameters.map(toHost));
  },
};

/** A small key-value table of this consumer, in the same transaction. Values are bytes. */
export const state = {
  get: (key) => state.getVersioned(key)?.value,
  /** The value and its version, a bigint that grows with every change. */
  getVersioned(key) {
    const entry = hostState.get(key) ?? undefined;
    return entry && { value: own(entry.value), version: entry.version };
  },
  /** After a `get` of the same key it holds only while nobody else has changed it. */
  put: (key, value) => hostState.put(key, bytes(value)[0]),
  /** False when the key has another version; undefined for a key that does not exist. */
  putIf(key, value, version) {
    try {
      hostState.putIf(key, bytes(value)[0], version);
      return true;
    } catch (error) {
      if (error?.payload !== undefined) return false;
      throw error;
    }
  },
  delete: (key) => hostState.delete(key),
};

/** Bytes as they are, anything else as JSON, with its content type. */
function bytes(body) {
  if (ArrayBuffer.isView(body)) return [body, undefined];
  return [new TextEncoder().encode(JSON.stringify(body)), 'application/json'];
}

/** Messages that leave when, and only when, the transaction has committed. */
export const outbox = {
  /** Sends to a target of the consumer's configuration; `delay` is in milliseconds. Returns the id. */
  publish(target, body, { routingKey, contentType, headers = {}, orderingKey, delay } = {}) {
    const [content, kind] = bytes(body);
    return calling(OutboxError, () =>
      hostOutbox.publish({
        target,
        routingKey,
        body: content,
        contentType: contentType ?? kind,
        headers: Object.entries(headers).map(([name, value]) => ({ name, value: toHost(value) })),
        orderingKey,
        delay: delay === undefined ? undefined : BigInt(Math.max(0, Math.round(delay))),
      }),
    );
  },
  /** Answers the message at its `replyTo`. */
  reply(body, { contentType } = {}) {
    const [content, kind] = bytes(body);
    calling(OutboxError, () => hostOutbox.reply(content, contentType ?? kind));
  },
};

/** What the host knows about this execution. */
export const context = {
  get consumer() {
    return hostContext.consumer();
  },
  /** The idempotency key, as bytes. */
  get key() {
    return own(hostContext.key());
  },
  get attempt() {
    return hostContext.attempt();
  },
  get redelivered() {
    return hostContext.redelivered();
  },
  /** When this attempt began, a `Date`. It does not move while the handler runs. */
  get now() {
    return new Date(Number(hostContext.now() / 1000n));
  },
  get dialect() {
    return hostContext.dialect();
  },
  /** The W3C trace the message belongs to, `{ traceId, spanId, sampled }`, or undefined. */
  get trace() {
    return hostContext.trace() ?? undefined;
  },
  /** A UUID. The n-th call returns the same one in every attempt of this message. */
  newId: () => hostContext.newId(),
  /** A value of the consumer's `config` table, or undefined. */
  config: (name) => hostContext.config(name) ?? undefined,
};

function line(level) {
  return (message, fields = {}) =>
    hostLog.write(
      level,
      String(message),
      Object.entries(fields).map(([name, value]) => [name, String(value)]),
    );
}

/** Log lines, with the message's key attached by the host. */
export const log = {
  debug: line('debug'),
  info: line('info'),
  warn: line('warn'),
  error: line('error'),
};
