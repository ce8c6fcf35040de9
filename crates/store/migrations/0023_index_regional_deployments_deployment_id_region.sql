CREATE UNIQUE INDEX IF NOT EXISTS regional_deployments_deployment_id_region ON regional_deployments (deployment_id, region);
