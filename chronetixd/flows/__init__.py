"""One flow's run: its plan, its machine's instructions, its workers' messages, restarts, roll-outs and recovery."""
