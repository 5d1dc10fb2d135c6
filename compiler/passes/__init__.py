"""Graph passes: plain functions `graph -> number of changes`; `front.py` has them in order."""
