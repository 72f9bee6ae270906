"""dspy_finetune.report"""
