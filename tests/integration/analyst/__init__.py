"""Tests of the interface analyst's room."""
