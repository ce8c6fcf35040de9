CREATE INDEX IF NOT EXISTS deployments_project_id ON deployments (project_id);
