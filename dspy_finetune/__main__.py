"""`python -m dspy_finetune`: the same as `dspy-finetune`."""

from dspy_finetune.cli.main import main

if __name__ == "__main__":
    main()
