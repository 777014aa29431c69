"""Compaction: live blocks of several segments are written anew, along their chains.

    plan (pure) → claim the segments → read, verify, write → `relocate` → sweep what nobody names

Why each segment is merged is said in `plan`; docs/decisions/010-compaction.md has the reasons and
the figures.
"""
