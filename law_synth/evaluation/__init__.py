"""`law-synth evaluate`: realism, obedience to the masks, and copying, each with N and protocol."""
