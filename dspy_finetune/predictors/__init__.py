"""dspy_finetune.predictors"""
