"""Events: what happened to a tenant's contexts, nodes, jobs and quota, in one order for readers.

Must not be here: log events (`base.log_events`), the audit trail (`tenants.audit`).
"""
