"""Library code of the corpus preparation tools."""
