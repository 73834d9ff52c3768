"""What a phase is, the three of the protocol, and the laws of the learning rate."""
