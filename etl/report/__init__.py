"""A built file told to people: summary, tables, pictures."""
