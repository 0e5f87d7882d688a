"""The clerk's desk for people and work; each page reads through selectors and changes through services."""

from ris.admin import cases, department, orders, patients, performed, records, steps, studies

__all__ = ["cases", "department", "orders", "patients", "performed", "records", "steps", "studies"]
