import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


def carry_rows(apps, schema_editor):
    new = apps.get_model('catalog', 'NewStray')
    fields = ('object_key', 'size_bytes', 'found_at', 'due_at', 'is_unclaimed')
    rows = apps.get_model('catalog', 'Stray').objects.values(*fields)
    new.objects.bulk_create((new(**row) for row in rows.iterator()), batch_size=1000)


class Migration(migrations.Migration):
    """A new table, since no database changes a primary key in place: from the object's key to a
    number."""

    dependencies = [('catalog', '0036_stores')]

    operations = [
        migrations.CreateModel(
            name='NewStray',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('object_key', models.CharField(max_length=1024)),
                ('size_bytes', models.BigIntegerField()),
                ('found_at', models.DateTimeField(default=django.utils.timezone.now, help_text='first')),
                ('due_at', models.DateTimeField(help_text='when it is looked at again')),
                ('is_unclaimed', models.BooleanField(default=False, help_text='a segment of a tenant or space that the database does not have')),
                ('store', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, to='catalog.store')),
            ],
        ),
        migrations.RunPython(carry_rows, migrations.RunPython.noop),
        migrations.DeleteModel(name='Stray'),
        migrations.RenameModel(old_name='NewStray', new_name='Stray'),
        migrations.AlterModelOptions(name='stray', options={'ordering': ('found_at',)}),
        migrations.AddIndex(model_name='stray', index=models.Index(fields=['due_at'], name='stray_due')),
        migrations.AddConstraint(model_name='stray', constraint=models.UniqueConstraint(fields=('store', 'object_key'), name='stray_once_a_store')),
        migrations.AddConstraint(
            model_name='stray',
            constraint=models.UniqueConstraint(condition=models.Q(('store', None)), fields=('object_key',), name='stray_once_in_default'),
        ),
    ]
