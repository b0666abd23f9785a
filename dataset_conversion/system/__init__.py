"""What every command needs of the machine: errors, files, folders, progress, provenance."""
