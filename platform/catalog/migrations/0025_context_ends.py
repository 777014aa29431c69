from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('catalog', '0024_contexts_as_assets'),
        ('tenants', '0005_cut_off'),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name='context',
            name='context_pinned',
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(condition=models.Q(('pinned_until__isnull', False)), fields=['pinned_until', 'tenant'], name='context_pin_ends'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(condition=models.Q(('extended_until__isnull', False)), fields=['extended_until'], name='context_extension_ends'),
        ),
    ]
