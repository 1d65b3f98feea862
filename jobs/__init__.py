"""One step, one file. Only this package touches disk, Feast, the network and the clock."""
