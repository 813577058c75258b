"""The steps of a map, one function each."""
