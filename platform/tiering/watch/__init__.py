"""Nothing that one tenant's nodes do may take the hot tier from the others.

What Valkey's rights and bounds cannot prevent is found within seconds: bytes that no quota counts,
connections and buffers above a tenant's share, calls that no client sends. The tenant is cut off
(`tenants.services.cut_off`), what it left outside of the books is removed, an operator lets it in.
"""
