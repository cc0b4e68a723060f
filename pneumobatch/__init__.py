"""Batch screening of chest X-ray archives for pneumonia on Ray. Research use only; not a medical device."""

__version__ = "0.1.0"
