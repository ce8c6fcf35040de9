CREATE INDEX IF NOT EXISTS instance_snapshots_organization_id_created_at ON instance_snapshots (organization_id, created_at);
