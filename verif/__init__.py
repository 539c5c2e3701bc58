"""How we know: test benches, proofs, recorded vectors and latencies, validation against measured data."""
