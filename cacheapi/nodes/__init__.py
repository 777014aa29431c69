"""/cache/v1, the cache endpoint: requests of nodes. Block bytes never pass here."""
