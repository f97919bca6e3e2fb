"""Search: which run is best, and what do many runs say together."""
