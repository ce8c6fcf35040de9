CREATE UNIQUE INDEX IF NOT EXISTS apps_organization_id_name ON apps (organization_id, name);
