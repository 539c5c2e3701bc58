"""Processing in memory as data sheets: channels, data layouts, command streams of kernels, their time and energy in closed form."""
