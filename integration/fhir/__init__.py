"""FHIR R4: pure builders, the read API, and the mirror that pushes to other servers."""
