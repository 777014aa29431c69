"""Compaction: live blocks of several segments are written anew, along their chains.

    plan (pure) → claim the segments → read, verify, write → `relocate` → sweep what nobody names

`plan` says which segments are merged and why; docs/decisions/010-compaction.md has the figures.
"""
