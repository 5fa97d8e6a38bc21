"""CrysDB: cleaning, labels, deduplication and splits."""
