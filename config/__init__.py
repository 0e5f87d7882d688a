"""Settings, urls, wsgi and the commands that start everything. Nobody imports this floor."""
