"""`python -m law_synth`, for `torchrun -m law_synth`."""

from law_synth.cli import main

if __name__ == "__main__":
    main()
