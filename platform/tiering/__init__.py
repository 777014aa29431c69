"""Moves blocks between the tiers (flush, compaction, removal); repairs both (reconcile, recovery).

Must not be here: Celery. `workers` binds these functions to tasks.
"""
