"""Benches of the integration floor."""
