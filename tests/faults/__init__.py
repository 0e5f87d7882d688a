"""What happens when things die, fill up or lie: real processes, real kills."""
