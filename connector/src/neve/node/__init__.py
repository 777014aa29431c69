"""A node's calls of the control plane: session, heartbeats, and the counters that they carry."""
