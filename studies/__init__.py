"""Published systems, one file each: its device, its experiment, the published value against ours."""
