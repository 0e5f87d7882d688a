"""The services this archive gives to its peers (SCP), one module each, and those it asks of others (SCU)."""
