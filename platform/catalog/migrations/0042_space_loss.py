from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [('catalog', '0039_store_away')]

    operations = [
        migrations.AddField(
            model_name='space',
            name='measured_loss',
            field=models.JSONField(default=dict, editable=False, help_text='of a codec with loss, as nodes measured it: neve.formats.loss.Loss'),
        ),
    ]
