"""What the daemon has to do with the service manager: activation, notification, watchdog, descriptor store, units."""
