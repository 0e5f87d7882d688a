"""Room for `FHIR:DiagnosticReport` and its like."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("integration", "0002_broker_tables")]
    operations = [
        migrations.AlterField(
            model_name="outboxitem",
            name="kind",
            field=models.CharField(help_text="ORU, ORM, FHIR:ImagingStudy, …", max_length=40),
        ),
    ]
