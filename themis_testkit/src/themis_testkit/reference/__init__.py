"""A plain numpy Llama. Every backend that runs the bundled model must give its greedy tokens."""
