"""Trainers side by side: trainings, scores, table."""
