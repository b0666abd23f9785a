"""Experiments as stages of stock commands that resume and are skipped."""
