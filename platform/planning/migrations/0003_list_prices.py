from datetime import date

from django.db import migrations


def add_list_prices(apps, schema_editor):
    """The first version: list prices of `neve.planner.prices`, as they are at this migration."""
    apps.get_model("planning", "PriceVersion").objects.get_or_create(
        valid_from=date(2000, 1, 1),
        defaults={
            "currency": "USD",
            "gpu_hour": "2.35",
            "hot_gib_hour": "0.0063",
            "cold_gib_month": "0.023",
            "put_1000": "0.005",
            "get_1000": "0.0004",
            "egress_gb": "0",
        },
    )


class Migration(migrations.Migration):

    dependencies = [
        ("planning", "0002_begin_now"),
    ]

    operations = [
        migrations.RunPython(add_list_prices, migrations.RunPython.noop),
    ]
