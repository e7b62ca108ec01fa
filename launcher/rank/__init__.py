"""What runs beside each rank on its host: started by mpirun or msrun, one process per rank or node."""
