"""Contours: text, polygons, checks and rasterising."""
