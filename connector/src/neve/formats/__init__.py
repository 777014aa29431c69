"""Formats and names shared by all processes: blocks, segments, ids, keys, spaces.

No module here opens a connection or a file. docs/formats specifies each format.
"""
