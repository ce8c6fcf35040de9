CREATE INDEX IF NOT EXISTS domains_organization_id_created_at ON domains (organization_id, created_at);
