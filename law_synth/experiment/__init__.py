"""`law-synth experiment`, `report` and `demo`: do synthetic cases help, measured by stock commands."""
