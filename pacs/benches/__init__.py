"""What the archive is measured with: `manage.py bench store`."""
