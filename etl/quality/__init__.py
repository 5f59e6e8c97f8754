"""Checks of rows and of how they agree, each a warning with its numbers."""
