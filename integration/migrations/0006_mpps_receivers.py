"""A destination may be a receiver of MPPS."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("integration", "0005_analyst_room")]
    operations = [
        migrations.AlterField(
            model_name="destination",
            name="kind",
            field=models.CharField(
                choices=[
                    ("hl7", "HL7 v2 over MLLP"),
                    ("fhir", "FHIR R4 server"),
                    ("mpps", "MPPS (DICOM)"),
                ],
                default="hl7",
                max_length=4,
            ),
        ),
    ]
