"""A built file proved: against its own digests, against its sources, built by other code."""
