"""/api/v1/contexts: named chains of blocks, their residency, their pins."""
