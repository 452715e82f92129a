"""The event bus: subscriptions, requests, timers, and the queues to those who read slowly."""
