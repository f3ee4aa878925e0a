"""Video networks and their files."""
