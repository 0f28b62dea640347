"""Models of the ecosystem: folders, chat templates, endpoints."""
