"""Predictors: a tuned model as a `dspy.Module`, asked with the prompt that it was trained on.

>>> from dspy_finetune import prompts
>>> from dspy_finetune.predictors import OpenAIPredictor
>>> predictor = OpenAIPredictor(prompts.binary(), "ft:gpt-4.1-mini-2025-04-14:acme:taste:abc12345")
>>> predictor.render(title="Why lock gates lean upstream")[-1]
{'role': 'user', 'content': 'Title: Why lock gates lean upstream'}
"""

from dspy_finetune.predictors.base import FinetunedPredictor, load_predictor
from dspy_finetune.predictors.calibrate import Calibration, Residuals, calibrate, calibrate_interval
from dspy_finetune.predictors.cascade import Cascade, CascadeChoice
from dspy_finetune.predictors.ensemble import Ensemble
from dspy_finetune.predictors.openai import OpenAIPredictor
from dspy_finetune.predictors.pairwise import DPOPredictor, PairwisePredictor
from dspy_finetune.predictors.ranking import RankedItem, Ranking, rank
from dspy_finetune.predictors.replace import DecisionLM, install, replace

install()

__all__ = [
    "Calibration",
    "Cascade",
    "CascadeChoice",
    "DPOPredictor",
    "DecisionLM",
    "Ensemble",
    "FinetunedPredictor",
    "OpenAIPredictor",
    "PairwisePredictor",
    "RankedItem",
    "Ranking",
    "Residuals",
    "calibrate",
    "calibrate_interval",
    "load_predictor",
    "rank",
    "replace",
]
