"""The event bus: subscriptions, requests, timers, and a bounded queue for each subscriber."""
