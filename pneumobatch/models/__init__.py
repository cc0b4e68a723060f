"""Networks, losses and the trained model on disk."""
