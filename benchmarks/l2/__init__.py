"""What `bench_l2` measures: adapters beside their floors, and users beside an L2 that is busy."""
