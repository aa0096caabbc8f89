"""Training: losses, optimizers, schedules, the mesh, one step, and the loop around it.

Import from the modules: `losses`, `cross_entropy`, `optimizers`, `schedules`, `partitioning`,
`step`, `trainer`, `logging`.
"""
