"""Quantum ESPRESSO through ASE."""
