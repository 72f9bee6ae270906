"""dspy_finetune.quickstart"""
