"""Screening of candidates: one idea per module, each a function from table to table."""
