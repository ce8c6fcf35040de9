CREATE INDEX IF NOT EXISTS regional_deployments_app_id ON regional_deployments (app_id);
