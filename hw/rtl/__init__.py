"""Amaranth descriptions of the units and the blocks they share; imported only when RTL is built."""
