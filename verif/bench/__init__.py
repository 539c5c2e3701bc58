"""cocotb benches: drivers, monitors and a scoreboard for ready/valid streams, and the test that puts them on a unit."""
