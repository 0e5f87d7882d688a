"""DICOMweb at /dicomweb/ (PS3.18): QIDO-RS, WADO-RS with rendered answers, STOW-RS."""
