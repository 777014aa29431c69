from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('retention', '0005_cold_full'),
    ]

    operations = [
        migrations.AddField(
            model_name='retentionpolicy',
            name='cold_codec',
            field=models.CharField(choices=[('none', 'As they are'), ('auto', 'Compressed where that makes reads faster'), ('always', 'Compressed')], default='none', help_text='how blocks are written to S3, without loss; older nodes read no compressed ones', max_length=6),
        ),
    ]
