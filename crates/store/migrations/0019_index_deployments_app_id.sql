CREATE INDEX IF NOT EXISTS deployments_app_id ON deployments (app_id);
