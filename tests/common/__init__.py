"""Tests of what every room shares."""
