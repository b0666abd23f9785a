"""`law-synth audit`: does a finished synthetic data set leak validation or test cases?"""
