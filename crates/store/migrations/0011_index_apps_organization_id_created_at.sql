CREATE INDEX IF NOT EXISTS apps_organization_id_created_at ON apps (organization_id, created_at);
