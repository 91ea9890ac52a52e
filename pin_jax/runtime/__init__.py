"""What runs the computation: meshes, checkpoints, cached features, training stages, reporting, FLOPs."""
