"""Crops become batches, in epochs that resume at any batch."""
