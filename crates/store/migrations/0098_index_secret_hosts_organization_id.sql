CREATE INDEX IF NOT EXISTS secret_hosts_organization_id ON secret_hosts (organization_id);
