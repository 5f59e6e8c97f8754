"""DICOM files: headers, where their pixels are, and what the pixels mean."""
