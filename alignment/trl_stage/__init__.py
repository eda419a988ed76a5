"""The one adapter between TRL's trainers and our stage contract. SFT, reward modelling and DPO stand on it."""
