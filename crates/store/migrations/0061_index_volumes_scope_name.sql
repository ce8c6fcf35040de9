CREATE UNIQUE INDEX IF NOT EXISTS volumes_scope_name ON volumes (organization_id, (COALESCE(project_id, '')), name);
