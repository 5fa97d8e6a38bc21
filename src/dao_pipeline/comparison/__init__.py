"""Candidates against DFT: geometry, order of polymorphs, formation and hull energies, cost."""
