"""The publication's tables: what methods draw, what it costs, and how good it is."""
