"""`python -m dspy_finetune.local`: the same as `dspy-finetune serve`, for programs that start the host."""

import sys

from dspy_finetune.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
