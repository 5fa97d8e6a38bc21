"""How likely each candidate is the ground state of its composition, learned from known crystals."""
