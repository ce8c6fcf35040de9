CREATE INDEX IF NOT EXISTS instances_organization_id_created_at ON instances (organization_id, created_at);
