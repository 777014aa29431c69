import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    """Strays are found again by reconcile, so their table is made anew instead of changed: its
    primary key becomes a number."""

    dependencies = [('catalog', '0036_stores')]

    operations = [
        migrations.DeleteModel(name='Stray'),
        migrations.CreateModel(
            name='Stray',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('object_key', models.CharField(max_length=1024)),
                ('size_bytes', models.BigIntegerField()),
                ('found_at', models.DateTimeField(default=django.utils.timezone.now, help_text='first')),
                ('due_at', models.DateTimeField(help_text='when it is looked at again')),
                ('is_unclaimed', models.BooleanField(default=False, help_text='a segment of a tenant or space that the database does not have')),
                ('store', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, to='catalog.store')),
            ],
            options={
                'ordering': ('found_at',),
                'indexes': [models.Index(fields=['due_at'], name='stray_due')],
                'constraints': [
                    models.UniqueConstraint(fields=('store', 'object_key'), name='stray_once_a_store'),
                    models.UniqueConstraint(condition=models.Q(('store', None)), fields=('object_key',), name='stray_once_in_default'),
                ],
            },
        ),
    ]
