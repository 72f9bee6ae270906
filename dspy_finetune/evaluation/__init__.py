"""dspy_finetune.evaluation"""
