"""Around the event loop: connections, and all that keeps one piece of work from stopping the others."""
