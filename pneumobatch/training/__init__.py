"""Catalogue and labels to a bundle, on Ray Train."""
