"""The few things every room needs: events, cause, clock, UIDs, audit, alerts, crash points."""
