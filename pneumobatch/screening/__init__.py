"""Archive and bundle to predictions, on Ray Data."""
