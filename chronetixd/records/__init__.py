"""What happened: events, logs and their files, exits, the audit log."""
