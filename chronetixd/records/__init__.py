"""Records of what happened: events, logs and their files, exits, the audit log."""
