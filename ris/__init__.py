"""Patients, orders, procedures, schedule, reconciliation, reading, reports. Knows people and work, no wire format."""
