"""The demo: tiny models and a synthetic corpus, trained, answered and scored with the published commands on a CPU."""
