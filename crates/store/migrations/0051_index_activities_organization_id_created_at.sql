CREATE INDEX IF NOT EXISTS activities_organization_id_created_at ON activities (organization_id, created_at);
