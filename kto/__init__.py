"""The command line: what the notebooks do, and jobs, sweeps and the preflight. Notebooks never import it."""
