CREATE INDEX IF NOT EXISTS credentials_organization_id_created_at ON credentials (organization_id, created_at);
