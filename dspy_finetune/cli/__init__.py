"""dspy_finetune.cli"""
