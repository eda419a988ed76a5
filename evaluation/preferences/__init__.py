"""Pure measures on preferences: reward-model accuracy and calibration, length bias, win rates, KL to a reference."""
