CREATE TABLE IF NOT EXISTS usage_positions (
    journal TEXT NOT NULL PRIMARY KEY,
    segment BIGINT NOT NULL,
    read_bytes BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
