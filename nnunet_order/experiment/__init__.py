"""Experiments made of stock commands, in stages that resume and are skipped; the verb `compare`."""
