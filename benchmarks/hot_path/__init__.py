"""The figures of `bench_hot_path`: a module per question, each beside its floor."""
