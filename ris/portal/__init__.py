"""The portal: referring physicians see the reports and images of their own orders, and nothing else."""
