"""dspy_finetune"""
