"""Which example is used, when, and with which random seed."""
