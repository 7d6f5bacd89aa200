"""Why a workload needs the memory it needs, and what would lower it most."""
