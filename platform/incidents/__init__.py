"""What needs a person: rules, incidents that they open and end, their cause, worst slice and lever.

Must not be here: figures of pages, Celery, changes of quotas or policies.
"""
