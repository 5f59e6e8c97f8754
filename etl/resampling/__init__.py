"""Frames of any size and pixel spacing → rows of the file, which have one size."""
