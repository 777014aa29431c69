from django.db import migrations
from django.utils import timezone

BATCH = 500


def own(apps, schema_editor):
    """May be broken off and repeated: what has a pin is not looked at again."""
    Context, Pin = apps.get_model("catalog", "Context"), apps.get_model("catalog", "Pin")
    without = Context.objects.filter(pinned_until__gt=timezone.now(), pins=None)
    while rows := list(without.values_list("pk", "tenant_id", "pinned_until")[:BATCH]):
        Pin.objects.bulk_create(
            Pin(
                context_id=context,
                tenant_id=tenant,
                owner="unknown",
                owner_name="unknown",
                reason="set before pins had owners",
                until=until,
            )
            for context, tenant, until in rows
        )


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("catalog", "0012_pins_have_owners"),
    ]

    operations = [migrations.RunPython(own, migrations.RunPython.noop)]
