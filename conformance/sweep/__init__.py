"""Many at once: jobs in several processes, whose results come one by one."""
