from django.db import migrations


def add_default(apps, schema_editor):
    """The row of the environment's S3: only its priority and prices are in the database."""
    apps.get_model("catalog", "Store").objects.get_or_create(
        is_default=True, defaults={"name": "default"}
    )


class Migration(migrations.Migration):

    dependencies = [('catalog', '0037_strays_of_stores')]

    operations = [migrations.RunPython(add_default, migrations.RunPython.noop)]
