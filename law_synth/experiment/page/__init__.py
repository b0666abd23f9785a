"""`law-synth report`: the experiment's page and tables."""
