CREATE INDEX IF NOT EXISTS events_organization_id_object_kind_occurred_at ON events (organization_id, object_kind, occurred_at);
