"""What every stage passes around: the crystal table, its files, geometry, and batches for PyTorch."""
