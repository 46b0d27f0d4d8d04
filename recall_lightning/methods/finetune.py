"""Plain fine-tuning: what every method is compared with."""

from recall_lightning.methods.method import Method

METHOD = Method("finetune", "plain fine-tuning")
