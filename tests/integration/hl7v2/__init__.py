"""Tests of the HL7 v2 door."""
