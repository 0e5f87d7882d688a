"""HL7 v2 and FHIR doors, inbox, outbox, delivery and the wiring page. Translates, decides nothing."""
