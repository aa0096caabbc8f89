"""Derived fields: one module per task cluster, one function per dataset, record to record (None drops it)."""
