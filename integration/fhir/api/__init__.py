"""The REST door at `/fhir/r4`: metadata, read and search, every answer a FHIR resource."""
