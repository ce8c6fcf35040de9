CREATE UNIQUE INDEX IF NOT EXISTS claims_pool_id_request_id ON claims (pool_id, request_id);
