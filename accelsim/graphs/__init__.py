"""Traced graphs of the zoo, symbolic in sequence and batch; written by `python -m accelsim_models.ship`."""
