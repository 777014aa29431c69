"""Bytes and names that processes agree on: blocks, segments, ids, keys, spaces.

Nothing here opens a connection or a file. docs/formats specifies each of them.
"""
