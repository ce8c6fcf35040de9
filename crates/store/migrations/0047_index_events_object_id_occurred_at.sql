CREATE INDEX IF NOT EXISTS events_object_id_occurred_at ON events (object_id, occurred_at);
