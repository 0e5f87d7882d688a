"""Moves beside merges with all they change, the account of a visit, documents that come with reports."""

import common.uids
import django.db.models.deletion
from django.db import migrations, models


FORWARD = """
CREATE TRIGGER signed_forever BEFORE UPDATE OR DELETE ON ris_reportdocument
    FOR EACH ROW EXECUTE FUNCTION orderly_refuse_change();
"""
BACKWARD = "DROP TRIGGER signed_forever ON ris_reportdocument;"


class Migration(migrations.Migration):
    dependencies = [
        ("ris", "0003_performed_troubles_and_images"),
    ]

    operations = [
        migrations.AddField(
            model_name="patientmerge",
            name="changed",
            field=models.JSONField(default=dict, help_text="model → row id → attribute → [before, after]"),
        ),
        migrations.AddField(
            model_name="patientmerge",
            name="kind",
            field=models.CharField(
                choices=[("merge", "Merge"), ("move", "Move")], default="merge", max_length=5
            ),
        ),
        migrations.AddField(
            model_name="visit",
            name="account_number",
            field=models.CharField(blank=True, help_text="PID-18: the account it is on", max_length=199),
        ),
        migrations.CreateModel(
            name="ReportDocument",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=common.uids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("number", models.PositiveIntegerField(help_text="its place in the version, from 1")),
                ("title", models.CharField(blank=True, max_length=200)),
                (
                    "media_type",
                    models.CharField(help_text="by its first bytes, else as the sender says", max_length=64),
                ),
                ("size", models.PositiveIntegerField(help_text="bytes")),
                ("sha256", models.CharField(max_length=64)),
                ("content", models.BinaryField()),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="documents",
                        to="ris.reportversion",
                    ),
                ),
            ],
            options={
                "ordering": ["version", "number"],
                "constraints": [
                    models.UniqueConstraint(fields=("version", "number"), name="one_document_a_number")
                ],
            },
        ),
        migrations.RunSQL(FORWARD, BACKWARD),
    ]
