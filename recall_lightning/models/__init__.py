"""The LightningModules that the recipes use."""
