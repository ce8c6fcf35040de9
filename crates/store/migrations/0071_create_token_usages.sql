CREATE TABLE IF NOT EXISTS token_usages (
    organization_id TEXT NOT NULL,
    hour_at BIGINT NOT NULL,
    service_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    credential_id TEXT NOT NULL,
    model TEXT NOT NULL,
    app_id TEXT NOT NULL,
    requests BIGINT NOT NULL,
    failed_requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    queue_ms BIGINT NOT NULL,
    answered_requests BIGINT NOT NULL,
    ttft_ms BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    PRIMARY KEY (organization_id, hour_at, service_id, project_id, credential_id, model)
);
