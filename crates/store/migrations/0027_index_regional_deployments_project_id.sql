CREATE INDEX IF NOT EXISTS regional_deployments_project_id ON regional_deployments (project_id);
