from django.db import migrations, models

REASONS = (
    *("never_stored", "evicted", "expired", "quota", "fingerprint", "timeout", "breaker"),
    *("corrupt", "clock", "denied", "idle", "evicted_cold", "unflushed", "store_away"),
    "unsupported",
)


class Migration(migrations.Migration):

    dependencies = [('catalog', '0038_default_store')]

    operations = [
        migrations.AlterField(
            model_name='keptrequest',
            name='reason',
            field=models.CharField(blank=True, choices=[(each, each) for each in REASONS], max_length=20),
        ),
    ]
