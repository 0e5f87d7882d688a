"""The tests of Orderly: by room, journeys through the whole house, and faults."""
