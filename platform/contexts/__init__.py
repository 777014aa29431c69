"""Named contexts: record, look up, pin, extend, expire; and the terms they give to their blocks.

The models and migrations are in `catalog`.
"""
