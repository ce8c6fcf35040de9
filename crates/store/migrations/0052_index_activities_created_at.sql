CREATE INDEX IF NOT EXISTS activities_created_at ON activities (created_at);
