from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0008_audit_address"),
    ]

    operations = [
        migrations.AddField(
            model_name="tenant",
            name="sample_rate_log",
            field=models.PositiveSmallIntegerField(
                default=4,
                editable=False,
                help_text="nodes sample one block of 2ⁿ; chosen by traffic",
            ),
        ),
        migrations.AddField(
            model_name="tenant",
            name="samples_enabled",
            field=models.BooleanField(
                default=True,
                help_text="nodes report which blocks a sample of requests asked for: keyed ids "
                "and times",
            ),
        ),
    ]
