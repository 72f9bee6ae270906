"""dspy_finetune.data"""
