"""A signed report version can be added, and neither changed nor removed; numbers of our own making."""

from django.db import migrations

FORWARD = """
CREATE TRIGGER signed_forever BEFORE UPDATE OR DELETE ON ris_reportversion
    FOR EACH ROW EXECUTE FUNCTION orderly_refuse_change();
CREATE SEQUENCE ris_number;
"""
BACKWARD = "DROP SEQUENCE ris_number; DROP TRIGGER signed_forever ON ris_reportversion;"


class Migration(migrations.Migration):
    dependencies = [("ris", "0001_initial"), ("common", "0002_audit_is_append_only")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
