"""dspy_finetune.local"""
