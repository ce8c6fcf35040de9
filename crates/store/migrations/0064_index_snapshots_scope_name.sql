CREATE UNIQUE INDEX IF NOT EXISTS snapshots_scope_name ON snapshots (organization_id, (COALESCE(project_id, '')), name);
