-- Keys, ids and everything that came from outside is BLOB: two keys are one only when every byte agrees.
-- Times are microseconds since the Unix epoch.

CREATE TABLE hapax_meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE hapax_consumer (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    name             TEXT NOT NULL UNIQUE,
    key_rule         TEXT NOT NULL,
    fingerprint_rule TEXT NOT NULL,
    generation       INTEGER NOT NULL DEFAULT 0,
    -- A message older than this may have been forgotten.
    horizon          INTEGER,
    -- The shortest retention, in microseconds, that keys were claimed under; null while it was forever.
    shortest_retention INTEGER,
    paused_at        INTEGER,
    paused_by        TEXT,
    paused_why       TEXT
);

-- fate: 1 committed, 2 waiting, 3 parked, 4 discarded, 5 started. Zero and below exist only inside the
-- transaction that claimed the key: see finish.
CREATE TABLE hapax_ledger (
    consumer    INTEGER NOT NULL,
    key         BLOB NOT NULL,
    fate        INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    plugin      BLOB NOT NULL,
    expires_at  INTEGER,
    reply       BLOB,
    PRIMARY KEY (consumer, key)
) WITHOUT ROWID;

-- Rows with a key stand in their partition's line, in the order of arrival.
CREATE TABLE hapax_waiting (
    arrival         INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer        INTEGER NOT NULL,
    id              BLOB NOT NULL,
    key             BLOB,
    fingerprint     BLOB NOT NULL,
    partition       INTEGER NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('retry', 'held', 'parked')),
    attempts        INTEGER NOT NULL,
    starts          INTEGER NOT NULL DEFAULT 0,
    code            TEXT NOT NULL,
    error           TEXT NOT NULL,
    stderr          TEXT NOT NULL,
    backtrace       TEXT NOT NULL,
    plugin          BLOB NOT NULL,
    trace_id        TEXT NOT NULL,
    queue           TEXT NOT NULL,
    exchange        BLOB NOT NULL,
    routing_key     BLOB NOT NULL,
    properties      BLOB NOT NULL,
    body            BLOB NOT NULL,
    first_failed_at INTEGER NOT NULL,
    failed_at       INTEGER NOT NULL,
    due_at          INTEGER,
    UNIQUE (consumer, id)
);

CREATE INDEX hapax_waiting_due ON hapax_waiting (consumer, due_at) WHERE status = 'retry';
CREATE INDEX hapax_waiting_line ON hapax_waiting (consumer, partition, arrival) WHERE key IS NOT NULL;
CREATE INDEX hapax_waiting_held ON hapax_waiting (consumer, partition) WHERE status = 'held';

-- due_at is null while a row belongs to the memory of a living host.
CREATE TABLE hapax_outbox (
    sequence     INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer     INTEGER NOT NULL,
    host         INTEGER NOT NULL,
    lane         INTEGER NOT NULL,
    due_at       INTEGER,
    attempts     INTEGER NOT NULL DEFAULT 0,
    error        TEXT,
    ordering_key BLOB,
    target       TEXT NOT NULL,
    may_drop     INTEGER NOT NULL,
    exchange     BLOB NOT NULL,
    routing_key  BLOB NOT NULL,
    properties   BLOB NOT NULL,
    body         BLOB NOT NULL,
    created_at   INTEGER NOT NULL
);

CREATE INDEX hapax_outbox_due ON hapax_outbox (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX hapax_outbox_host ON hapax_outbox (host) WHERE due_at IS NULL;
CREATE INDEX hapax_outbox_order ON hapax_outbox (ordering_key, sequence) WHERE ordering_key IS NOT NULL;

CREATE TABLE hapax_state (
    consumer INTEGER NOT NULL,
    key      BLOB NOT NULL,
    value    BLOB NOT NULL,
    version  INTEGER NOT NULL,
    PRIMARY KEY (consumer, key)
) WITHOUT ROWID;

-- What operators did that no other table tells. Bounded: the oldest entries go.
CREATE TABLE hapax_journal (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    consumer INTEGER,
    key      BLOB,
    why      TEXT NOT NULL
);

-- The embedded broker.
CREATE TABLE hapax_queue (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

CREATE TABLE hapax_message (
    sequence    INTEGER PRIMARY KEY AUTOINCREMENT,
    queue       INTEGER NOT NULL,
    deliveries  INTEGER NOT NULL DEFAULT 0,
    exchange    BLOB NOT NULL,
    routing_key BLOB NOT NULL,
    properties  BLOB NOT NULL,
    body        BLOB NOT NULL
);

CREATE INDEX hapax_message_queue ON hapax_message (queue, sequence);
