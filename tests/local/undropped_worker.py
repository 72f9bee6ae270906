"""The real worker without dropout, so that one process and several draw the same nothing."""

from __future__ import annotations

from dspy_finetune.local import training, worker

if __name__ == "__main__":
    training.LORA_DROPOUT = 0.0
    worker.main()
