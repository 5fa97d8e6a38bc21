"""Known crystals as first guesses: looked up by composition, with the elements swapped."""
