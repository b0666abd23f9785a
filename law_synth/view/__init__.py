"""How law_synth sees a raw data set: 2D slices of values in 0 to 255 with masks of class numbers."""
