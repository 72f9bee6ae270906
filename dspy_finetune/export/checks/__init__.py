"""dspy_finetune.checks"""
