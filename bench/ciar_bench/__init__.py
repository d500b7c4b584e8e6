"""Measurements of CIAR: latency, quality, tables."""
