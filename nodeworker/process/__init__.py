"""A worker: the launcher that forks it, its link to the daemon, its way back to the next one."""
