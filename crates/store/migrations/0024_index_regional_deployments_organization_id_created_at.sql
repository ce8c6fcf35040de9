CREATE INDEX IF NOT EXISTS regional_deployments_organization_id_created_at ON regional_deployments (organization_id, created_at);
