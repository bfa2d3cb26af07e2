"""Rules as users write them, good and bad; `tests/integration/test_own_rules.py` uses them."""
