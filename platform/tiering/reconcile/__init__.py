"""Reconcile: finds and repairs the leftovers of crashes, lost writes and changes by hand.

| side | what may be wrong | repair |
|---|---|---|
| segments | row without object, or with another or a cut one | its blocks are not cold any more |
| | data without index | the blocks are restored, as far as the cold quota has room |
| blocks | index without data, blocks in wrong sets | not hot, or not cold, any more; filed anew |
| | usage drift | counters are what an exact recount says |
| keys | uncommitted keys without an end | they get one |
| objects | segments without rows | adopted where their space is known, else deleted later |
| leftovers | uploads of killed workers, rows of old jobs and stored answers | ended, deleted |

Every side is checked in slices, so a run costs about the same however much is stored; `Round` rows
keep the places. All of it runs beside live traffic and may be repeated and killed.
"""
