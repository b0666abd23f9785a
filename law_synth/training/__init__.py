"""`law-synth train`: the mask ControlNet on one fold of a data set."""
