"""Simulated tiers: which blocks a policy keeps, without a server, one block at a time.

requests   the workload: requests of block ids in time order, with scans between them
traces     readers of recorded workloads
policies   who leaves a full tier next: lru, 2q, s3-fifo, lfu, gdsf, belady
single     one tier that stores all that is asked for, and the upper bound of its hits
curve      the hit rate of LRU at every capacity, in one pass
settings   of several tiers: sizes, policies, codecs, rules of time
index      which blocks are hot, cold and local, as the index's functions say
tiers      plays requests on tiers: hits, bytes held and moved
sweep      many settings in parallel processes
hot        promotion to the hot tier, as in the index's functions
cold       eviction of the cold tier and its cost in rewritten segments
segments   places of blocks in S3 after flushes and merges

Rules: pure and deterministic; no input or output, no clock, no randomness. Times are simulated
seconds. Objects belong to one thread. Tests compare `policies`, `index`, `hot` and `cold` with the
index's functions on a real Valkey (tests/neve/test_simulate_*.py).
"""
