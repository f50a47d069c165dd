"""The quickstart's story: a real daemon, real VMs, real requests, told step by step."""
