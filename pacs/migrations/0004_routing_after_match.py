from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("pacs", "0003_routing"),
    ]

    operations = [
        migrations.AddField(
            model_name="routingrule",
            name="after_match",
            field=models.BooleanField(
                default=False,
                help_text="wait until the study is linked to its order, so that it goes out corrected",
            ),
        ),
        migrations.AlterField(
            model_name="forwarding",
            name="state",
            field=models.CharField(
                choices=[
                    ("held", "Waits for its order"),
                    ("waiting", "Waiting"),
                    ("sent", "Sent"),
                    ("parked", "Waits for a person"),
                ],
                default="waiting",
                max_length=10,
            ),
        ),
    ]
