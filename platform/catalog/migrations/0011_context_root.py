import django.db.models.functions.text
from django.db import migrations, models


class Migration(migrations.Migration):
    """The first id of each chain, computed by the database: existing rows have it at once.

    Both databases write the table anew for it.
    """

    dependencies = [
        ('catalog', '0010_tier_counters'),
    ]

    operations = [
        migrations.AddField(
            model_name='context',
            name='root',
            field=models.GeneratedField(db_persist=True, expression=django.db.models.functions.text.Substr('chain', 1, 16), output_field=models.BinaryField(max_length=16)),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(fields=['space', 'root'], name='context_of_root'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(condition=models.Q(('pinned_until__isnull', False)), fields=['space', 'root', 'pinned_until'], name='context_pinned_of_root'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(condition=models.Q(('extended_until__isnull', False)), fields=['space', 'root', 'extended_until'], name='context_extended_of_root'),
        ),
    ]
