CREATE INDEX IF NOT EXISTS instances_regional_deployment_id ON instances (regional_deployment_id);
