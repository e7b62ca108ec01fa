"""Runs beside each rank on its host: mpirun or msrun starts one process per rank or node."""
