CREATE TABLE IF NOT EXISTS organizations (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    default_project_id TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
