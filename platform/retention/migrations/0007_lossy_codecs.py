from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('retention', '0006_cold_codec'),
    ]

    operations = [
        migrations.AddField(
            model_name='retentionpolicy',
            name='lossy_codecs',
            field=models.CharField(blank=True, default='', help_text='models whose nodes may store KV with loss, such as smollm*=int8, *=fp8', max_length=1000),
        ),
    ]
