"""`python -m dspy_finetune.local`: the same as `dspy-finetune serve`, for programs that start the host."""

import sys

from dspy_finetune.cli.main import main

if __name__ == "__main__":
    # A program has said all that it wants: what stands in the folder where it happens to run is for people's commands.
    main(["serve", *sys.argv[1:]], has_defaults=False)
