CREATE INDEX IF NOT EXISTS pool_members_pool_id ON pool_members (pool_id, created_at);
