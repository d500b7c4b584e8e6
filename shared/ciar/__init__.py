"""CIAR: interval-based edge-cloud collaborative decoding for autoregressive image generation."""

__version__ = "0.1.0"
