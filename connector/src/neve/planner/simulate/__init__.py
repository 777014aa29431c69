"""Simulated tiers: which blocks a policy keeps, without a server, one block at a time.

requests   what is asked for: requests of block ids in time order, with scans between them
hot        eviction and promotion of the hot tier, as the index's functions do them
cold       eviction of the cold tier and what it costs in rewritten segments
segments   where blocks stand in S3 after flushes and merges
lru        the ideal cache that a replay is compared with

Rules: pure and deterministic; no input or output, no clock, no randomness. Times are given in
seconds of the simulated world. Objects belong to one thread. Tests hold `hot` and `cold` against
the index's functions on a real Valkey (tests/neve/test_simulate_hot.py, test_simulate_cold.py).
"""
