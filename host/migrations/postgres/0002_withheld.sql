-- How what is stored of a message is encoded: its kind and version. `withheld` holds what could not be read
-- of the message, in that encoding; it is null for a message that is here whole and readable (`amqp/1`).

ALTER TABLE hapax_waiting ADD COLUMN encoding TEXT NOT NULL DEFAULT 'amqp/1';
ALTER TABLE hapax_waiting ADD COLUMN withheld BYTEA;
