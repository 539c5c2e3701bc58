"""Layers in the arithmetic of low-bit machines, bit for bit: numpy functions that units, studies and tests share."""
