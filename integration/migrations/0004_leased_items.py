"""An index over the few items that are being sent now."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("integration", "0003_longer_kinds")]
    operations = [
        migrations.AddIndex(
            model_name="outboxitem",
            index=models.Index(
                condition=models.Q(("lease_until__isnull", False), ("state", "queued")),
                fields=["destination"],
                name="outbox_leased",
            ),
        ),
    ]
