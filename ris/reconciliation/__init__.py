"""Finding out which study belongs to which order: evidence, matching, cases."""
