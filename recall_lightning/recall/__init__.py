"""RecallCallback and its parts."""
