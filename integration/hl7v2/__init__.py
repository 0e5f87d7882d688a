"""The HL7 version 2 door: frames, syntax, translation to commands of `ris`, acknowledgements, and the way out."""
