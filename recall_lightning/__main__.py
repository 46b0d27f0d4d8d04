"""``python -m recall_lightning`` is the command ``recall-lightning``."""

from recall_lightning.cli.main import main

if __name__ == "__main__":
    main()
