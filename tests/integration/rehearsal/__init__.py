"""Tests of the rehearsal's parts: its script, its peers and its count."""
