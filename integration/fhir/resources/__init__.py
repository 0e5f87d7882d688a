"""Pure builders: rows in, plain dicts out (FHIR R4 4.0.1). No query, no clock, no setting in them."""
