"""The archive: DICOM network, storage, index, query/retrieve, DICOMweb, viewer. Knows images, no orders."""
