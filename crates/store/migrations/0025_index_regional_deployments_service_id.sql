CREATE INDEX IF NOT EXISTS regional_deployments_service_id ON regional_deployments (service_id);
