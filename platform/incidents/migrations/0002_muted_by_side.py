"""Operators and a tenant's people mute an incident each for themselves."""

from typing import Any

from django.db import migrations, models
from django.db.models import F


def mute_both(apps: Any, schema_editor: Any) -> None:
    """A mute hid it from both sides so far."""
    incidents = apps.get_model("incidents", "Incident")._base_manager
    incidents.update(operators_muted_until=F("muted_until"))


class Migration(migrations.Migration):
    dependencies = [("incidents", "0001_first")]

    operations = [
        migrations.AddField(
            "incident",
            "operators_muted_until",
            models.DateTimeField(blank=True, null=True),
        ),
        migrations.AlterField(
            "incident",
            "muted_until",
            models.DateTimeField(
                blank=True, help_text="for the tenant's people; not for operators", null=True
            ),
        ),
        migrations.RunPython(mute_both, migrations.RunPython.noop),
    ]
