"""Failed logins, so that guessing has to wait."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("common", "0002_audit_is_append_only")]
    operations = [
        migrations.CreateModel(
            name="LoginTries",
            fields=[
                ("key", models.CharField(help_text="digest of name and address", max_length=64, primary_key=True, serialize=False)),
                ("failures", models.PositiveIntegerField()),
                ("last_at", models.DateTimeField(db_index=True)),
                ("wait_until", models.DateTimeField()),
            ],
        ),
    ]
