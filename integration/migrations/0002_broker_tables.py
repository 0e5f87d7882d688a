"""The tables of the default broker (dramatiq-postgres), so that a ring never finds them missing."""

from django.db import migrations


def make(apps, schema_editor):
    from dramatiq_postgres import init

    with schema_editor.connection.cursor() as cursor:
        init(cursor)


class Migration(migrations.Migration):
    dependencies = [("integration", "0001_initial")]
    operations = [migrations.RunPython(make, migrations.RunPython.noop)]
