CREATE INDEX IF NOT EXISTS events_occurred_at ON events (occurred_at);
