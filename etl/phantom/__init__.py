"""Synthetic patients with exactly known contours."""
