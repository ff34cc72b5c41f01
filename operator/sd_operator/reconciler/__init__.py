"""The I/O of a pass over one model: gather its state, then carry out what the rules decide."""
