CREATE INDEX IF NOT EXISTS instances_deployment_id ON instances (deployment_id);
