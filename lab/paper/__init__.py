"""The paper's tables on public benchmarks: lmms-eval asks, our engine answers, with every method of a table at once."""
