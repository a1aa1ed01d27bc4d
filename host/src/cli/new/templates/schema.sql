CREATE TABLE IF NOT EXISTS t_points (
    order_id VARCHAR(64) NOT NULL PRIMARY KEY,
    user_id  VARCHAR(64) NOT NULL,
    points   BIGINT      NOT NULL
);
