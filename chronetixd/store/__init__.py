"""What must survive the daemon: the state folder, the journal, the names of stored descriptors."""
