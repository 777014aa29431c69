from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('catalog', '0006_reconcile_goes_round'),
    ]

    operations = [
        migrations.AddField(
            model_name='segment',
            name='indexed_at',
            field=models.DateTimeField(blank=True, help_text='when the index had answered for each of its blocks', null=True),
        ),
        migrations.AddField(
            model_name='segment',
            name='refused',
            field=models.JSONField(blank=True, default=list, help_text='blocks whose copies here the index did not take then'),
        ),
        # Whoever wrote the segments that stand has said so long ago.
        migrations.RunSQL(
            "UPDATE catalog_segment SET indexed_at = created_at WHERE state = 'live'",
            migrations.RunSQL.noop,
        ),
    ]
