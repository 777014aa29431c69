"""Keys that were there before scopes may do what they did."""

from django.db import migrations

SCOPES = {"team": ["read", "write"], "operator": ["keys", "read", "write"]}


def give_scopes(apps, schema_editor):
    keys = apps.get_model("tenants", "ApiKey").objects
    for role, scopes in SCOPES.items():
        keys.filter(role=role).update(scopes=scopes)


class Migration(migrations.Migration):

    dependencies = [
        ("tenants", "0006_key_scopes"),
    ]

    operations = [
        migrations.RunPython(give_scopes, migrations.RunPython.noop),
    ]
