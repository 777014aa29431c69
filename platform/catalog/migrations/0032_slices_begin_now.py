from django.db import migrations


def begin_now(apps, schema_editor):
    """Counts of sessions before this migration belong to no known time: they are left out."""
    sessions = apps.get_model("catalog", "NodeSession")._base_manager
    sliced = apps.get_model("catalog", "SlicedSession")
    rows = sessions.order_by().values_list("pk", "tenant_id", "last_seq", "totals")
    batch = []
    for pk, tenant_id, seq, totals in rows.iterator(chunk_size=500):
        batch.append(sliced(session_id=pk, tenant_id=tenant_id, seq=seq, totals=totals))
        if len(batch) == 500:
            sliced._base_manager.bulk_create(batch, ignore_conflicts=True)
            batch = []
    sliced._base_manager.bulk_create(batch, ignore_conflicts=True)


class Migration(migrations.Migration):

    dependencies = [
        ("catalog", "0031_slices"),
    ]

    operations = [
        migrations.RunPython(begin_now, migrations.RunPython.noop),
    ]
