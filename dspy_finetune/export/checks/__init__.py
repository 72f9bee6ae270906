"""Check a training file: the rules of a row, the checks between rows, the lint, the report, and the fix."""
