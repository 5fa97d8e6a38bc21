"""Crysformer and its heads (torch only)."""
