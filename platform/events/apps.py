from django.apps import AppConfig


class EventsConfig(AppConfig):
    name = "events"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from events import order, quotas, webhooks
        from tenants.announcements import quota_changed

        order.follow(webhooks.plan)
        quota_changed.connect(quotas.tell_change)
