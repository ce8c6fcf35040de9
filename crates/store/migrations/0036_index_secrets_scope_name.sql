CREATE UNIQUE INDEX IF NOT EXISTS secrets_scope_name ON secrets (organization_id, (COALESCE(project_id, '')), name);
