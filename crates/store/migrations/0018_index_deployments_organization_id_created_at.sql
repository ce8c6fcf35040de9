CREATE INDEX IF NOT EXISTS deployments_organization_id_created_at ON deployments (organization_id, created_at);
