"""The files that trainings and generations leave, each written and read in one place."""
