"""Programs that measure this project's claims; README.md says what each is for."""
