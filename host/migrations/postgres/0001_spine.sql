-- Keys, ids and everything that came from outside is BYTEA: a collation would take two keys for one,
-- and TEXT refuses NUL. The ledger stays narrow and has no second index: every message inserts into it.

CREATE TABLE hapax_meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE hapax_consumer (
    id               INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name             TEXT NOT NULL UNIQUE,
    key_rule         TEXT NOT NULL,
    fingerprint_rule TEXT NOT NULL,
    generation       INTEGER NOT NULL DEFAULT 0,
    -- A message older than this may have been forgotten.
    horizon          TIMESTAMPTZ,
    -- The shortest retention, in microseconds, that keys were claimed under; null while it was forever.
    shortest_retention BIGINT,
    paused_at        TIMESTAMPTZ,
    paused_by        TEXT,
    paused_why       TEXT
);

-- fate: 1 committed, 2 waiting, 3 parked, 4 discarded, 5 started
CREATE TABLE hapax_ledger (
    consumer    INTEGER NOT NULL,
    key         BYTEA NOT NULL,
    fate        SMALLINT NOT NULL,
    attempts    INTEGER NOT NULL,
    fingerprint BYTEA NOT NULL,
    plugin      BYTEA NOT NULL,
    expires_at  TIMESTAMPTZ,
    reply       BYTEA,
    PRIMARY KEY (consumer, key)
);

-- Rows with a key stand in their partition's line, in the order of arrival.
CREATE TABLE hapax_waiting (
    arrival         BIGINT GENERATED ALWAYS AS IDENTITY,
    consumer        INTEGER NOT NULL,
    id              BYTEA NOT NULL,
    key             BYTEA,
    fingerprint     BYTEA NOT NULL,
    partition       BIGINT NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('retry', 'held', 'parked')),
    attempts        INTEGER NOT NULL,
    starts          INTEGER NOT NULL DEFAULT 0,
    code            TEXT NOT NULL,
    error           TEXT NOT NULL,
    stderr          TEXT NOT NULL,
    backtrace       TEXT NOT NULL,
    plugin          BYTEA NOT NULL,
    trace_id        TEXT NOT NULL,
    queue           TEXT NOT NULL,
    exchange        BYTEA NOT NULL,
    routing_key     BYTEA NOT NULL,
    properties      BYTEA NOT NULL,
    body            BYTEA NOT NULL,
    first_failed_at TIMESTAMPTZ NOT NULL,
    failed_at       TIMESTAMPTZ NOT NULL,
    due_at          TIMESTAMPTZ,
    PRIMARY KEY (consumer, id)
);

CREATE INDEX hapax_waiting_due ON hapax_waiting (consumer, due_at) WHERE status = 'retry';
CREATE INDEX hapax_waiting_line ON hapax_waiting (consumer, partition, arrival) WHERE key IS NOT NULL;
CREATE INDEX hapax_waiting_held ON hapax_waiting (consumer, partition) WHERE status = 'held';

-- due_at is null while a row belongs to the memory of a living host.
CREATE TABLE hapax_outbox (
    sequence     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer     INTEGER NOT NULL,
    host         INTEGER NOT NULL,
    lane         SMALLINT NOT NULL,
    due_at       TIMESTAMPTZ,
    attempts     INTEGER NOT NULL DEFAULT 0,
    error        TEXT,
    ordering_key BYTEA,
    target       TEXT NOT NULL,
    may_drop     BOOLEAN NOT NULL,
    exchange     BYTEA NOT NULL,
    routing_key  BYTEA NOT NULL,
    properties   BYTEA NOT NULL,
    body         BYTEA NOT NULL,
    created_at   TIMESTAMPTZ NOT NULL
);

CREATE INDEX hapax_outbox_due ON hapax_outbox (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX hapax_outbox_host ON hapax_outbox (host) WHERE due_at IS NULL;
CREATE INDEX hapax_outbox_order ON hapax_outbox (ordering_key, sequence) WHERE ordering_key IS NOT NULL;

CREATE TABLE hapax_state (
    consumer INTEGER NOT NULL,
    key      BYTEA NOT NULL,
    value    BYTEA NOT NULL,
    version  BIGINT NOT NULL,
    PRIMARY KEY (consumer, key)
);

-- What operators did that no other table tells. Bounded: the oldest entries go.
CREATE TABLE hapax_journal (
    id       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       TIMESTAMPTZ NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    consumer INTEGER,
    key      BYTEA,
    why      TEXT NOT NULL
);
