CREATE UNIQUE INDEX IF NOT EXISTS service_pools_organization_id_name ON service_pools (organization_id, name);
