CREATE TABLE IF NOT EXISTS call_patterns (
    service_id TEXT NOT NULL PRIMARY KEY REFERENCES services (id),
    called_at BIGINT NOT NULL,
    counts TEXT NOT NULL
);
