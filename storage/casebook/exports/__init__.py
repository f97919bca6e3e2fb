"""Layers of a case as the files that other programs read: NIfTI, GeoJSON (QuPath), DICOM-SEG. The inverse of casebook.formats."""
