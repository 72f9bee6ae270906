"""dspy_finetune.jobs"""
