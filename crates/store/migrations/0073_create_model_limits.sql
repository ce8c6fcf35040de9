CREATE TABLE IF NOT EXISTS model_limits (
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    scope TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    requests_per_minute BIGINT NOT NULL,
    tokens_per_minute BIGINT NOT NULL,
    tokens_per_month BIGINT NOT NULL,
    priority TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (scope, subject_id)
);
