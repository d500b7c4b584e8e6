"""How good pictures are: distances between sets of features, and what probes see in them."""
