"""The hot tier's index: its functions in Lua, typed calls of them, and readers of its entries.

Works over anything that executes one command, so it opens no connection itself.
"""
