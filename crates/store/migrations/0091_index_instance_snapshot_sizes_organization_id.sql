CREATE INDEX IF NOT EXISTS instance_snapshot_sizes_organization_id ON instance_snapshot_sizes (organization_id);
