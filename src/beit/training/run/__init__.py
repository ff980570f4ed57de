"""The run directory: what a run leaves on disk."""
