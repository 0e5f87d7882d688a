"""Our own side of DICOM networking (PS3.7, PS3.8): sockets, bounds, negotiation, message exchange, sending."""
