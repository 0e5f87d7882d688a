"""The world around us, played over real sockets: a HIS, scanners, a radiologist."""
