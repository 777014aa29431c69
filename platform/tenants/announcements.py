"""Announcements of tenants to the apps above, which subscribe in their `AppConfig.ready`.

Receivers run inside the transaction of the change, in the order of INSTALLED_APPS; an error undoes
the change. Calls of Valkey wait for the commit (`storage.hot.on_commit`).
"""

from django.dispatch import Signal

# A new tenant has its row and quota. `tenant_id`.
tenant_created = Signal()
# Open sessions must end: of `key`, or all of the tenant if None. `tenant_id`, `key`.
access_ended = Signal()
# Quota or state changed. `tenant_id`.
tenant_changed = Signal()
# A quota got other values. `tenant`, `changed`: names of the values.
quota_changed = Signal()
