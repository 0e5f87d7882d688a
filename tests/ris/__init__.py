"""Tests of people and work."""
