"""What is computed: graph types, the tracer, the model catalogue, number formats and transforms."""
