from django.db import migrations


def begin_now(apps, schema_editor):
    """Counts of sessions before this migration belong to no known day: they are left out."""
    sessions = apps.get_model("catalog", "NodeSession")._base_manager
    folded = apps.get_model("planning", "FoldedSession")
    rows = sessions.order_by().values_list("pk", "tenant_id", "last_seq", "totals")
    batch = []
    for pk, tenant_id, seq, totals in rows.iterator(chunk_size=500):
        batch.append(folded(session_id=pk, tenant_id=tenant_id, seq=seq, totals=totals))
        if len(batch) == 500:
            folded._base_manager.bulk_create(batch, ignore_conflicts=True)
            batch = []
    folded._base_manager.bulk_create(batch, ignore_conflicts=True)


class Migration(migrations.Migration):

    dependencies = [
        ("planning", "0001_first"),
    ]

    operations = [
        migrations.RunPython(begin_now, migrations.RunPython.noop),
    ]
