"""How long blocks stay, and where: the retention policy of a tenant."""
