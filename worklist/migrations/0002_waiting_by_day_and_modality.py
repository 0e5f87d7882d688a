"""What scanners are told of is found by day and modality at once."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("worklist", "0001_initial")]
    operations = [
        migrations.RemoveIndex(model_name="worklistitem", name="worklist_waiting"),
        migrations.AddIndex(
            model_name="worklistitem",
            index=models.Index(
                condition=models.Q(("waiting", True)),
                fields=["start_date", "modality"],
                name="worklist_waiting_day",
            ),
        ),
    ]
