from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from tenants import people_audit, second_factor, sign_ins

        people_audit.connect()
        second_factor.connect()
        sign_ins.connect()
