"""What programs without this package need to run an exported model; `deploy` writes it."""
