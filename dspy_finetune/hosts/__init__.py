"""dspy_finetune.hosts"""
