"""Measurements of this room beside those of others; `manage.py bench NAME` runs them on a database of their own."""
