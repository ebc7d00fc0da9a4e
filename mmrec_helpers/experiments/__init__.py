"""Studies: one module for each question that a notebook asks, and the catalogue of what a run measures."""
