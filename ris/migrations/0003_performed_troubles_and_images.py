"""Performed steps say what is wrong with them and how many images are missing; the catalogue names stations."""

import django.contrib.postgres.fields
import django.contrib.postgres.indexes
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("ris", "0002_signed_versions_never_change"),
    ]

    operations = [
        migrations.AddField(
            model_name="proceduredefinition",
            name="stations",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=64),
                blank=True,
                default=list,
                help_text="names of the stations that do it; empty: all of its modality",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="correction",
            field=models.JSONField(
                blank=True, default=dict, help_text="what assigning it to another order changed, to undo it"
            ),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="images_accepted",
            field=models.CharField(
                blank=True, help_text="cause: a person says that no more will come", max_length=128
            ),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="images_expected",
            field=models.PositiveIntegerField(
                blank=True, help_text="instances it names, once it has ended", null=True
            ),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="images_missing",
            field=models.PositiveIntegerField(
                blank=True, help_text="of those, not in the archive", null=True
            ),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="images_since",
            field=models.DateTimeField(blank=True, help_text="when they were first waited for", null=True),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="solution",
            field=models.CharField(blank=True, max_length=300),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="solved_at",
            field=models.DateTimeField(
                blank=True, help_text="a person has dealt with the problem", null=True
            ),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="solved_cause",
            field=models.CharField(blank=True, max_length=128),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="told",
            field=models.JSONField(
                blank=True,
                default=dict,
                help_text="patient and numbers as the scanner named them, for comparison",
            ),
        ),
        migrations.AddField(
            model_name="performedprocedurestep",
            name="trouble",
            field=models.CharField(
                blank=True,
                choices=[
                    ("", "None"),
                    ("unscheduled", "Without a worklist entry"),
                    ("unknown", "Step not known here"),
                    ("patient", "Another patient"),
                    ("state", "Contradicts the step's state"),
                    ("wrong_entry", "Wrong entry picked"),
                    ("incomplete", "Incomplete report"),
                ],
                max_length=12,
            ),
        ),
        migrations.AddIndex(
            model_name="performedprocedurestep",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["study_instance_uids"], name="performed_studies"
            ),
        ),
        migrations.AddIndex(
            model_name="performedprocedurestep",
            index=models.Index(
                condition=models.Q(models.Q(("problem", ""), _negated=True), ("solved_at__isnull", True)),
                fields=["created_at"],
                name="performed_troubled",
            ),
        ),
        migrations.AddIndex(
            model_name="performedprocedurestep",
            index=models.Index(
                condition=models.Q(("images_accepted", ""), ("images_missing__gt", 0)),
                fields=["images_since"],
                name="performed_short",
            ),
        ),
    ]
