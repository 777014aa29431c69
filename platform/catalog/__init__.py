"""What the platform knows: spaces, node sessions, contexts, segments, usage, jobs."""
