"""Whole paths, read like a day at the hospital."""
