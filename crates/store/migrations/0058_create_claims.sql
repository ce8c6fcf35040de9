CREATE TABLE IF NOT EXISTS claims (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    pool_id TEXT NOT NULL REFERENCES service_pools (id),
    service_id TEXT NOT NULL UNIQUE,
    request_id TEXT NOT NULL,
    status TEXT NOT NULL,
    prewarmed BIGINT NOT NULL,
    pool_generation BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    fulfilled_at BIGINT,
    released_at BIGINT
);
