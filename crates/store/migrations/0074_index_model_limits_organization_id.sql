CREATE INDEX IF NOT EXISTS model_limits_organization_id ON model_limits (organization_id);
