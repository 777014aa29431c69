"""Named contexts: record, look up, pin, extend, expire; and the terms that they give to blocks.

Their rows stand in `catalog.models`, whose migrations they share.
"""
