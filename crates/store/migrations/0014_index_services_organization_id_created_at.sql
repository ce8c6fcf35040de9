CREATE INDEX IF NOT EXISTS services_organization_id_created_at ON services (organization_id, created_at);
