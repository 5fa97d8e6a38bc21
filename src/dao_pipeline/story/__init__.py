"""What became of one candidate, and what a campaign's folder holds."""
