"""Predictions and labels to summaries, figures and a report."""
