"""What is simulated: the model zoo, and how its shipped graphs are made. Installed as `accelsim_models`."""
