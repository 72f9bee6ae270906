"""dspy_finetune.export"""
