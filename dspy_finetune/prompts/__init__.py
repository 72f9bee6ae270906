"""dspy_finetune.prompts"""
