"""What a campaign will cost, before anything runs."""
