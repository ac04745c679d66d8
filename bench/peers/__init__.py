"""Programs in other libraries that do what fastmlp does: what the benches compare with."""
