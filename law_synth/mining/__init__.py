"""`law-synth mine`: which training cases a segmenter finds hard."""
