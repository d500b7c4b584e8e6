"""`ciar-bench certify` and `risk-check`: static thresholds with a guaranteed risk."""
