"""Audit rows can be added, and neither changed nor removed."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION orderly_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: a % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON common_auditevent
    FOR EACH ROW EXECUTE FUNCTION orderly_refuse_change();
"""
BACKWARD = "DROP TRIGGER append_only ON common_auditevent; DROP FUNCTION orderly_refuse_change();"


class Migration(migrations.Migration):
    dependencies = [("common", "0001_initial")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
