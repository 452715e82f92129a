"""The service manager: activation, notification, watchdog, descriptor store, units."""
