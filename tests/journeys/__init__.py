"""Journeys: from one door of the engine to another, with the programs of others as peers."""
