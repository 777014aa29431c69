from django.apps import AppConfig


class RetentionConfig(AppConfig):
    name = "retention"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from retention import provisioning, services
        from tenants.announcements import tenant_changed, tenant_created

        tenant_created.connect(services.create_policy)
        tenant_changed.connect(provisioning.provision_changed)
