CREATE TABLE IF NOT EXISTS domains (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    project_id TEXT REFERENCES projects (id),
    app_id TEXT REFERENCES apps (id),
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    messages TEXT NOT NULL,
    intended_cname TEXT NOT NULL,
    deployment_group TEXT NOT NULL,
    load_balancer TEXT NOT NULL,
    version BIGINT NOT NULL,
    verified_at BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
