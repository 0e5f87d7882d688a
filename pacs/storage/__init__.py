"""Where data sets lie: the spool they arrive in and the volume they stay in."""
