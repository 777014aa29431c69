"""The engine's KV as torch tensors: layouts, copies to and from staging, comparison.

Only this package and the adapters import torch, and only adapters import this package.
"""
