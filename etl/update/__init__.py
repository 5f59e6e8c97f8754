"""Updates of OUT: rows whose sources are unchanged are taken over, the rest is parsed."""
