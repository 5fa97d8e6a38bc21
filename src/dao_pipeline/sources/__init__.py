"""Where crystals come from: embedded set, files, databases."""
