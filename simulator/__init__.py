"""`scripts/simulate-host`: a host with GPUs that are not there, for the real agent to work on."""
