"""Task streams: ordered tasks behind one LightningDataModule."""
