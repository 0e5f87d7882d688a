"""Tests of the floor that starts everything."""
