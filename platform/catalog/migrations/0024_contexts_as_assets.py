from django.db import migrations, models


def mark_expired(apps, schema_editor):
    """One statement: it may be repeated."""
    Context = apps.get_model("catalog", "Context")
    Context.objects.filter(expired_at__isnull=False).update(state="expired")


class Migration(migrations.Migration):

    dependencies = [
        ('catalog', '0023_selective_weights'),
        ('tenants', '0005_cut_off'),
    ]

    operations = [
        migrations.AddField(
            model_name='context',
            name='checked_at',
            field=models.DateTimeField(blank=True, help_text='when the index was asked', null=True),
        ),
        migrations.AddField(
            model_name='context',
            name='durable_until',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='context',
            name='expires_at',
            field=models.DateTimeField(blank=True, help_text='when it will be expired', null=True),
        ),
        migrations.AddField(
            model_name='context',
            name='hot_until',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='context',
            name='labels',
            field=models.JSONField(blank=True, default=dict, help_text='names and texts that teams give'),
        ),
        migrations.AddField(
            model_name='context',
            name='last_used_at',
            field=models.DateTimeField(blank=True, help_text="by a node's request", null=True),
        ),
        migrations.AddField(
            model_name='context',
            name='owner',
            field=models.CharField(blank=True, help_text='who recorded it: key:7, user:3', max_length=200),
        ),
        migrations.AddField(
            model_name='context',
            name='owner_name',
            field=models.CharField(blank=True, help_text='as it was then', max_length=200),
        ),
        migrations.AddField(
            model_name='context',
            name='revision',
            field=models.PositiveIntegerField(default=1),
        ),
        migrations.AddField(
            model_name='context',
            name='size_bytes',
            field=models.BigIntegerField(blank=True, help_text='of its stored blocks', null=True),
        ),
        migrations.AddField(
            model_name='context',
            name='state',
            field=models.CharField(choices=[('expected', 'Expected'), ('stored', 'Stored'), ('partial', 'Partial'), ('lost', 'Lost'), ('expired', 'Expired')], default='stored', max_length=10),
        ),
        migrations.AddField(
            model_name='context',
            name='warned_until',
            field=models.DateTimeField(blank=True, help_text='ends up to here were announced', null=True),
        ),
        migrations.AddField(
            model_name='pin',
            name='tier',
            field=models.CharField(choices=[('any', 'Any'), ('hot', 'Hot'), ('durable', 'Durable')], default='any', max_length=10),
        ),
        migrations.AlterField(
            model_name='context',
            name='label',
            field=models.CharField(blank=True, help_text='what retention rules match', max_length=100),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(condition=models.Q(('durable_until__isnull', False)), fields=['space', 'root', 'durable_until'], name='context_durable_of_root'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(condition=models.Q(('expires_at__isnull', False)), fields=['expires_at'], name='context_expires'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(condition=models.Q(('expired_at__isnull', True)), fields=['tenant', 'checked_at'], name='context_to_check'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(condition=models.Q(('pinned_until__isnull', False)), fields=['tenant', 'pinned_until'], name='context_pinned'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(fields=['tenant', 'created_at', 'uuid'], name='context_by_created'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(fields=['tenant', 'updated_at', 'uuid'], name='context_by_updated'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(fields=['tenant', 'last_used_at', 'uuid'], name='context_by_last_used'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(fields=['tenant', 'name', 'uuid'], name='context_by_name'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(fields=['tenant', 'tokens', 'uuid'], name='context_by_tokens'),
        ),
        migrations.AddIndex(
            model_name='context',
            index=models.Index(fields=['tenant', 'size_bytes', 'uuid'], name='context_by_size'),
        ),
        migrations.RunPython(mark_expired, migrations.RunPython.noop),
    ]
