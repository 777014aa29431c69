"""Access to valkey-hot and S3, as their administrator.

Must not be here: what a tenant is promised, when blocks go.
"""
